package test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// remote runs commands as an operator elsewhere does: over TLS, without the socket.
type remote struct {
	servers []*clusterServer
	flags   []string
}

func (r remote) run(t testing.TB, args ...string) commandRun {
	t.Helper()
	var addresses []string
	for _, s := range r.servers {
		addresses = append(addresses, "https://"+s.Address+":4380")
	}
	return run(t, nil, append(append(args, "--address", strings.Join(addresses, ",")), r.flags...)...)
}

// operatorCertificate makes a certificate of an authority in dir.
func operatorCertificate(t testing.TB, dir, name string, args ...string) []string {
	t.Helper()
	run(t, nil, append([]string{"tls", "cert", "--ca", dir, "--out", dir, "--name", name}, args...)...).want(t, 0)
	return []string{"--client-cert", filepath.Join(dir, name+".pem"), "--client-key", filepath.Join(dir, name+"-key.pem")}
}

// Operators over TLS: whoever shows nothing is told nothing; tokens and certificates are worth
// their role at every server, at once and until they are revoked; who did what is in the events of
// every server; and certificates of the wrong role or cluster are refused.
func TestOperators(t *testing.T) {
	c := startCluster(t, 3, clusterOptions{Secure: true})
	ca := []string{"--ca-cert", filepath.Join(c.secrets(), "ca.pem")}
	one, another := c.servers[0], c.servers[1]
	as := func(flags ...string) remote { return remote{c.servers, append(flags, ca...)} }

	// The socket of a server is where the first token comes from.
	file := filepath.Join(c.dir, "boss.token")
	one.Run(t, "token", "create", "boss", "--role", "admin", "--out", file).want(t, 0)
	boss := as("--token", "@"+file)
	boss.run(t, "token", "whoami").want(t, 0).says(t, "boss (token) from 127.", ": admin")
	viewerFile := filepath.Join(c.dir, "viewer.token")
	boss.run(t, "token", "create", "viewer", "--role", "viewer", "--out", viewerFile).want(t, 0)
	for _, s := range c.servers {
		r := remote{[]*clusterServer{s}, append([]string{"--token", "@" + viewerFile}, ca...)}
		r.run(t, "slave", "list").want(t, 0)
		r.run(t, "slave", "allow", "10.0.0.1").want(t, 6)
	}

	// Nobody, and those who are nobody here.
	as().run(t, "slave", "list").want(t, 6).says(t, "show a token")
	(remote{c.servers, nil}).run(t, "slave", "list").want(t, 6).says(t, "is --ca-cert (EBOOT_CA_CERT) the authority of this cluster")
	alice := operatorCertificate(t, c.secrets(), "alice", "--role", "operator", "--grant", "operator")
	as(alice...).run(t, "slave", "allow", "10.9.0.0/16").want(t, 0)
	as(alice...).run(t, "token", "list").want(t, 6).says(t, "wants the role admin, and alice (certificate)")
	server := []string{"--client-cert", filepath.Join(c.secrets(), one.Name+".pem"), "--client-key", filepath.Join(c.secrets(), one.Name+"-key.pem")}
	as(server...).run(t, "slave", "list").want(t, 6).says(t, "of role server, not operator")
	as(append(server, "--token", "@"+file)...).run(t, "slave", "list").want(t, 6)
	elsewhere := filepath.Join(c.dir, "elsewhere")
	run(t, nil, "tls", "ca", "--cluster", "test", "--out", elsewhere).want(t, 0)
	mallory := operatorCertificate(t, elsewhere, "mallory", "--role", "operator", "--grant", "admin")
	as(mallory...).run(t, "slave", "list").want(t, 6).says(t, "does not accept the certificate of --client-cert")
	(remote{c.servers, []string{"--ca-cert", filepath.Join(elsewhere, "ca.pem"), "--token", "@" + file}}).run(t, "slave", "list").want(t, 6)

	// An operator's certificate opens no port of the servers.
	for _, protocol := range []string{"eboot-raft/1", "eboot-blob/1", "eboot-rpc/1"} {
		if got := certifiedPeer(t, one.Address, protocol, alice[1], alice[3]); !strings.Contains(got, "of role operator, not server") {
			t.Errorf("%s with an operator's certificate: %q", protocol, got)
		}
	}
	if answer := plainHTTP(t, one.Address); strings.Contains(answer, "200 OK") {
		t.Errorf("without TLS: %q", answer)
	}

	// Who, what, from where, which request, which generation: at every server.
	for _, s := range c.servers {
		s.until(t, 10*time.Second, []string{"alice (certificate) from 127.", "10.9.0.0/16"}, "events")
		s.Run(t, "events", "-o", "json").want(t, 0).says(t, `"kind": "token.created"`, `"name": "boss"`, `"via": "certificate"`, `"request": "`, `"generation": `)
	}
	boss.run(t, "snapshot", "save", filepath.Join(c.dir, "saved")).want(t, 0)
	boss.run(t, "cluster", "transfer", another.ID(t)).want(t, 0)
	one.until(t, 10*time.Second, []string{"snapshot.saved", "leader.transferred", "boss (token) from 127."}, "events")

	boss.run(t, "token", "revoke", "viewer").want(t, 0)
	for _, s := range c.servers {
		testutil.Poll(t, 5*time.Second, "the token is to be worth nothing at "+s.Name, func() bool {
			return (remote{[]*clusterServer{s}, append([]string{"--token", "@" + viewerFile}, ca...)}).run(t, "slave", "list").Code == 6
		})
	}
	secret, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.servers {
		if strings.Contains(s.Output(), strings.TrimSpace(string(secret))) {
			t.Errorf("%s logs a token", s.Name)
		}
		leaveNoSecret(t, s.DataDir, bytes.TrimSpace(secret))
	}
}

// leaveNoSecret looks for a secret in every file of a server.
func leaveNoSecret(t testing.TB, dir string, secret []byte) {
	t.Helper()
	if len(secret) < 40 {
		t.Fatalf("%d bytes are no secret", len(secret))
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) { // the server lives
			return nil
		}
		if files++; bytes.Contains(content, secret) {
			t.Errorf("%s has a secret", path)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files looked at: %v", files, err)
	}
}

// certifiedPeer asks a peer port for a protocol with a certificate, and returns the answer or
// the error.
func certifiedPeer(t testing.TB, address, protocol, certificate, key string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"eboot-peer/1"}, Certificates: []tls.Certificate{pair}}}
	conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(address, "4381"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "%s cluster=test from=x to=\n", protocol); err != nil {
		return err.Error()
	}
	answer, err := io.ReadAll(conn)
	return fmt.Sprint(string(answer), err)
}

// plainHTTP asks the API's TCP port without TLS.
func plainHTTP(t testing.TB, address string) string {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(address, "4380"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	return string(answer)
}
