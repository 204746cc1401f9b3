package peerport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/identity"
)

// authority makes credentials, those included that should not be accepted.
type authority struct {
	*identity.Authority
	pem []byte
}

func newAuthority(t *testing.T, cluster string) authority {
	t.Helper()
	a, pair, err := identity.NewAuthority(cluster, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return authority{a, pair.Certificate}
}

func (a authority) issue(t *testing.T, role identity.Role, name string, lifetime time.Duration, now time.Time) identity.Pair {
	t.Helper()
	pair, _, err := a.Issue(identity.Request{Role: role, Name: name, Lifetime: lifetime}, now)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// server returns the credentials of a server, and where its files are.
func (a authority) server(t *testing.T, name string) (*identity.Credentials, identity.Options) {
	t.Helper()
	pair := a.issue(t, identity.Server, name, time.Hour, time.Now())
	dir := t.TempDir()
	o := identity.Options{Cluster: a.Cluster(), CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	if err := errors.Join(os.WriteFile(o.CA, a.pem, 0o600), os.WriteFile(o.Cert, pair.Certificate, 0o600), os.WriteFile(o.Key, pair.Key, 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := identity.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, o
}

// shown are credentials with another certificate, which trust everybody: those of
// somebody who wants in.
type shown struct {
	Credentials
	pair identity.Pair // none: no certificate at all
}

func (s shown) Outgoing() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if s.pair.Certificate == nil {
			return &tls.Certificate{}, nil
		}
		pair, err := tls.X509KeyPair(s.pair.Certificate, s.pair.Key)
		return &pair, err
	}}
}

func (s shown) Incoming() *tls.Config {
	c := &tls.Config{ClientAuth: tls.RequestClientCert}
	pair, err := tls.X509KeyPair(s.pair.Certificate, s.pair.Key)
	c.Certificates = []tls.Certificate{pair}
	if err != nil {
		c.Certificates = nil
	}
	return c
}

func secureDial(t *testing.T, address, protocol string, c Credentials) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := Dialer{Cluster: "prod", Server: "server-a", Credentials: c}.Dial(ctx, address, protocol, "server-b")
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

func TestCertificates(t *testing.T) {
	a := newAuthority(t, "prod")
	mine, _ := a.server(t, "b")
	p, address, _ := serve(t, Options{Credentials: mine})
	theirs, _ := a.server(t, "a")
	for _, protocol := range []string{Raft, Blob, RPC} {
		echo(t, p, protocol)
		conn, err := secureDial(t, address, protocol, theirs)
		if err != nil {
			t.Fatal(err)
		}
		says(t, conn, "hello over "+protocol)
		if v := conn.(*vouched).ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("TLS version %#x", v)
		}
	}
	if s := p.Stats(); s.Accepted != 3 || s.Refused != 0 {
		t.Errorf("stats %+v", s)
	}
}

// Nobody but a server of this cluster gets a connection, for whatever protocol; the
// reason reaches both sides.
func TestRefusedCertificates(t *testing.T) {
	a, other := newAuthority(t, "prod"), newAuthority(t, "prod")
	elsewhere := newAuthority(t, "test")
	var buf bytes.Buffer
	mine, _ := a.server(t, "b")
	p, address, stop := serve(t, Options{Credentials: mine, Logger: hclog.New(&hclog.LoggerOptions{Output: &buf, Mutex: &sync.Mutex{}})})
	cases := []struct {
		name string
		pair identity.Pair
		says string
	}{
		{"operator", a.issue(t, identity.Operator, "alice", time.Hour, time.Now()), "of role operator, not server"},
		{"other authority", other.issue(t, identity.Server, "a", time.Hour, time.Now()), "is not accepted"},
		{"other cluster", elsewhere.issue(t, identity.Server, "a", time.Hour, time.Now()), "is not accepted"},
		{"expired", a.issue(t, identity.Server, "a", 5*time.Minute, time.Now().Add(-4*time.Minute-time.Hour)), "expired"},
		{"none", identity.Pair{}, "it ended the TLS handshake"},
	}
	refused := 0
	for _, protocol := range []string{Raft, Blob, RPC} {
		p.Listener(protocol) // it is served: that is not the reason
		for _, c := range cases {
			refused++
			conn, err := secureDial(t, address, protocol, shown{pair: c.pair})
			if conn != nil || !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s for %s: %v, want %q", c.name, protocol, err, c.says)
			}
		}
	}
	poll(t, "all to be refused", func() bool { return p.Stats().Refused == uint64(refused) })
	stop()
	if s := p.Stats(); s.Accepted != 0 || s.Open != 0 {
		t.Errorf("stats %+v", s)
	}
	if n := strings.Count(buf.String(), "\n"); n != 1 || !strings.Contains(buf.String(), "of role operator") {
		t.Errorf("%d lines in the log, want one a minute:\n%s", n, buf.String())
	}
}

// An authority that two clusters share does not open either to the other.
func TestSharedAuthority(t *testing.T) {
	prod, test := newAuthority(t, "prod"), newAuthority(t, "test")
	both := append(bytes.Clone(prod.pem), test.pem...)
	prod.pem, test.pem = both, both
	mine, _ := prod.server(t, "b")
	theirs, _ := test.server(t, "a")
	p, address, _ := serve(t, Options{Credentials: mine})
	p.Listener(Raft)
	_, err := secureDial(t, address, Raft, shown{pair: test.issue(t, identity.Server, "a", time.Hour, time.Now())})
	if !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), `of cluster "test", not of "prod"`) {
		t.Errorf("let in: %v", err)
	}
	_, err = secureDial(t, address, Raft, theirs)
	if !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), `of cluster "prod", not of "test"`) {
		t.Errorf("dialled: %v", err)
	}
}

// The one who dials looks at the certificate as well.
func TestImpostor(t *testing.T) {
	a, other := newAuthority(t, "prod"), newAuthority(t, "prod")
	mine, _ := a.server(t, "a")
	for name, c := range map[string]struct {
		pair identity.Pair
		says string
	}{
		"operator":        {a.issue(t, identity.Operator, "b", time.Hour, time.Now()), "of role operator, not server"},
		"other authority": {other.issue(t, identity.Server, "b", time.Hour, time.Now()), "is not accepted"},
	} {
		p, address, stop := serve(t, Options{Credentials: shown{pair: c.pair}})
		p.Listener(Blob)
		if _, err := secureDial(t, address, Blob, mine); !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		stop()
	}
	// A TLS server of another kind, such as the API of a server with the same certificate.
	pair := a.issue(t, identity.Server, "b", time.Hour, time.Now())
	certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocols := range [][]string{nil, {"h2", "http/1.1"}} {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		var web sync.WaitGroup
		server := &http.Server{ReadHeaderTimeout: patience, ErrorLog: hclog.NewNullLogger().StandardLogger(nil)}
		web.Go(func() { _ = server.Serve(ln) })
		if _, err := secureDial(t, ln.Addr().String(), Blob, mine); !errors.Is(err, eboot.ErrDenied) {
			t.Errorf("API with protocols %q: %v", protocols, err)
		}
		_ = server.Close()
		web.Wait()
	}
}

// One side with certificates and one without: each says so.
func TestHalfSecure(t *testing.T) {
	a := newAuthority(t, "prod")
	mine, _ := a.server(t, "b")
	theirs, _ := a.server(t, "a")
	log := func() (*bytes.Buffer, hclog.Logger) {
		buf := &bytes.Buffer{}
		return buf, hclog.New(&hclog.LoggerOptions{Output: buf, Mutex: &sync.Mutex{}})
	}
	for _, c := range []struct {
		name           string
		server, client Credentials
		kind           error
		dialler, log   string
	}{
		{"plain to TLS", mine, nil, eboot.ErrDenied, "it does not speak TLS, and this server wants a certificate", "it does not speak TLS"},
		{"TLS to plain", nil, theirs, eboot.ErrDenied, "it does not speak TLS: a server without certificates", "it speaks TLS, and this server has no certificates"},
	} {
		buf, logger := log()
		p, address, stop := serve(t, Options{Credentials: c.server, Logger: logger})
		p.Listener(RPC)
		for range 10 {
			if _, err := secureDial(t, address, RPC, c.client); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.dialler) {
				t.Errorf("%s: %v, want %q", c.name, err, c.dialler)
			}
		}
		poll(t, "all to be refused", func() bool { return p.Stats().Refused == 10 })
		stop()
		if n := strings.Count(buf.String(), "\n"); n != 1 || !strings.Contains(buf.String(), c.log) {
			t.Errorf("%s: %d lines:\n%s", c.name, n, buf.String())
		}
	}
}

// Connections that stand in the handshake hold nobody up and end in time.
func TestSlowHandshake(t *testing.T) {
	a := newAuthority(t, "prod")
	mine, _ := a.server(t, "b")
	theirs, _ := a.server(t, "a")
	p, address, _ := serve(t, Options{Credentials: mine, Preface: time.Second, PerAddress: 8})
	echo(t, p, RPC)
	var slow []net.Conn
	for i := range 7 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{tlsHandshake, 3, 1, 2, 0}[:i%6]); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
	}
	poll(t, "the slow ones to stand", func() bool { return p.Stats().Open == len(slow) })
	conn, err := secureDial(t, address, RPC, theirs)
	if err != nil {
		t.Fatal(err)
	}
	says(t, conn, "between slow ones")
	one, err := net.Dial("tcp", address) // the eighth
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	poll(t, "the eighth", func() bool { return p.Stats().Open == len(slow)+2 })
	if _, err := secureDial(t, address, RPC, theirs); !errors.Is(err, eboot.ErrUnreachable) {
		t.Errorf("the ninth: %v", err)
	}
	for _, conn := range slow {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a connection that stands in the handshake is still open")
		}
	}
	says(t, conn, "still")
}

// New files count for the next connection. One that is open stays as long as both sides still
// accept each other, and ends when one of them does not: who has stolen a certificate does not
// keep what he opened with it.
func TestCertificatesChange(t *testing.T) {
	old, next := newAuthority(t, "prod"), newAuthority(t, "prod")
	mine, files := old.server(t, "b")
	theirs, _ := old.server(t, "a")
	strangers, _ := next.server(t, "c")
	p, address, _ := serve(t, Options{Credentials: mine})
	echo(t, p, Raft)
	before, err := secureDial(t, address, Raft, theirs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secureDial(t, address, Raft, strangers); !errors.Is(err, eboot.ErrDenied) {
		t.Fatalf("before: %v", err)
	}
	pair := next.issue(t, identity.Server, "b", time.Hour, time.Now())
	for path, content := range map[string][]byte{files.CA: next.pem, files.Cert: pair.Certificate, files.Key: pair.Key} {
		if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	poll(t, "the new certificate to be in use", func() bool {
		_, err := secureDial(t, address, Raft, strangers)
		return err == nil
	})
	if _, err := secureDial(t, address, Raft, theirs); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("one of the old authority: %v", err)
	}
	poll(t, "what was opened with it to end", func() bool {
		_ = before.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(before, "x"); err != nil {
			return true
		}
		_, err := io.ReadFull(before, make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	})
	poll(t, "the port to have closed it", func() bool { return p.Stats().Open == 1 }) // the stranger's
}

// An end that a certificate has is one for the connections, too: of the one who dialled and of
// the one who accepted.
func TestOpenConnectionsExpire(t *testing.T) {
	a := newAuthority(t, "prod")
	for _, side := range []string{"dialled", "accepted"} {
		t.Run(side, func(t *testing.T) {
			_, files := a.server(t, "b")
			_, theirFiles := a.server(t, "a")
			offset := new(atomic.Int64)
			late := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
			files.Now, theirFiles.Now = time.Now, late // the one with theirFiles finds that the other has expired
			if side == "accepted" {
				files.Now, theirFiles.Now = late, time.Now
			}
			mine, theirs := open(t, files), open(t, theirFiles)
			p, address, _ := serve(t, Options{Credentials: mine})
			echo(t, p, Raft)
			conn, err := secureDial(t, address, Raft, theirs)
			if err != nil {
				t.Fatal(err)
			}
			says(t, conn, "hello")
			offset.Store(int64(2 * time.Hour))
			poll(t, "the connection to end", func() bool {
				_ = conn.SetDeadline(time.Now().Add(patience))
				if _, err := io.WriteString(conn, "x"); err != nil {
					return true
				}
				_, err := io.ReadFull(conn, make([]byte, 1))
				return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
			})
		})
	}
}

func open(t *testing.T, o identity.Options) *identity.Credentials {
	t.Helper()
	c, err := identity.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// HTTP runs over it, large answers included, from several connections at once.
func TestSecureBlobs(t *testing.T) {
	a := newAuthority(t, "prod")
	mine, _ := a.server(t, "b")
	theirs, _ := a.server(t, "a")
	p, address, _ := serve(t, Options{Credentials: mine})
	content := bytes.Repeat([]byte("blob"), 1<<18)
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(p.Listener(Blob)) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return Dialer{Cluster: "prod", Server: "server-a", Credentials: theirs}.Dial(ctx, address, Blob, "server-b")
	}}
	client := &http.Client{Transport: transport, Timeout: patience}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			response, err := client.Get("http://server-b/blob")
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(response.Body)
			if err = errors.Join(err, response.Body.Close()); err != nil || !bytes.Equal(got, content) {
				t.Error(fmt.Errorf("%d bytes, %w", len(got), err))
			}
		})
	}
	all.Wait()
	transport.CloseIdleConnections()
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
