package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// A stranger that announces a body and never sends it holds no connection, whatever it asked
// for; and is told of no route by a redirect to it.
func TestStrangersAreHungUpOn(t *testing.T) {
	for name, c := range map[string]struct {
		door    Door
		request string
		status  string
	}{
		"alive":            {DoorTLS, "GET /livez HTTP/1.1\r\nHost: x\r\n", "200"},
		"options":          {DoorTLS, "OPTIONS * HTTP/1.1\r\nHost: x\r\n", "401"},
		"origin":           {DoorTLS, "POST /v1/tokens HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n", "403"},
		"host":             {DoorInsecure, "POST /v1/tokens HTTP/1.1\r\nHost: x\r\n", "403"},
		"unclean":          {DoorTLS, "GET //v1/tokens HTTP/1.1\r\nHost: x\r\n", "401"},
		"unclean, no such": {DoorTLS, "GET //v1/nothing HTTP/1.1\r\nHost: x\r\n", "401"},
		"dots":             {DoorTLS, "POST /livez/../v1/tokens HTTP/1.1\r\nHost: x\r\n", "401"},
		"connect":          {DoorTLS, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n", "401"},
		"absolute":         {DoorTLS, "GET http://127.0.0.1/v1/tokens HTTP/1.1\r\nHost: x\r\n", "401"},
		"encoded":          {DoorTLS, "GET /v1/%74okens HTTP/1.1\r\nHost: x\r\n", "401"},
		"head":             {DoorTLS, "HEAD /v1/tokens HTTP/1.1\r\nHost: x\r\n", "401"},
		"other scheme":     {DoorInsecure, "GET /v1/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic admin\r\n", "401"},
		"scheme alone":     {DoorInsecure, "GET /v1/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer\r\n", "401"},
		"no scheme":        {DoorInsecure, "GET /v1/whoami HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization:  admin\r\n", "401"},
		"two headers":      {DoorTLS, "GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nAuthorization: Bearer admin\r\n", "401"},
		"upgrade":          {DoorTLS, "GET /v1/tokens HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n", "401"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serveDoor(t, ln, c.door, ClientOptions{})
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, c.request+"Content-Length: 10\r\n\r\n")
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+c.status+" ") {
				t.Errorf("%q, %v; want %s and the end", answer, err, c.status)
			}
		})
	}
}

// A client shows its token to nobody that the server sends it to.
func TestTokenIsNotRedirected(t *testing.T) {
	var shown atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Store(true)
		_, _ = io.WriteString(w, "{}")
	}))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	client, err := NewClient(ClientOptions{Addresses: []string{server.URL}, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Whoami(t.Context()); err == nil || shown.Load() {
		t.Errorf("%v; the other was asked: %v", err, shown.Load())
	}
}

// revoking is a doorman whose tokens are worth nothing from one moment on.
type revoking struct {
	doorman
	revoked *atomic.Bool
}

func (k revoking) TokenOf(text string) (eboot.Token, error) {
	if k.revoked.Load() {
		return eboot.Token{}, eboot.ErrUnauthenticated
	}
	return k.doorman.TokenOf(text)
}

// get asks with a token and returns the answer as it came.
func get(t *testing.T, url, token string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// Who listens with a token that is then revoked hears no more, in each form of a stream.
func TestStreamsEndWithTheToken(t *testing.T) {
	for _, contentType := range []string{typeNDJSON, typeSSE} {
		revoked := &atomic.Bool{}
		a := access{keeper: revoking{revoked: revoked}, door: DoorTLS}
		s := NewServer(ServerOptions{Logger: hclog.NewNullLogger()})
		coming := make(chan eboot.Event)
		server := httptest.NewServer(s.handle(a, route{role: eboot.RoleViewer, handler: func(w http.ResponseWriter, r *http.Request) error {
			follow(w, r, contentType, 20*time.Millisecond, nil, coming, func(e eboot.Event) (id, kind string) { return e.ID, "" })
			return nil
		}}))
		response := get(t, server.URL, "viewer")
		coming <- eboot.Event{ID: "r1"} // it is heard
		revoked.Store(true)
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, response.Body)
			ended <- err
		}()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the stream goes on", contentType)
			close(coming)
			<-ended
		}
		_ = response.Body.Close()
		server.Close()
	}
}

// Who may not open the socket hears that, and what to do.
func TestSocketOfOthers(t *testing.T) {
	err := &unreachableError{server: "unix:///run/eboot/api.sock", cause: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}}
	if text := err.Error(); !strings.Contains(text, "use sudo") || strings.Contains(text, "is the server running") {
		t.Error(text)
	}
}

// beginner is a doorman of a server that is in no cluster yet.
type beginner struct{ doorman }

func (beginner) TokenOf(string) (eboot.Token, error) {
	return eboot.Token{}, fmt.Errorf("token: in no cluster: %w", eboot.ErrUnavailable)
}

// A server that cannot know a token is no reason not to ask the next; it hangs up all the same.
func TestTokenIsShownToTheNext(t *testing.T) {
	var addresses []string
	for _, keeper := range []Gatekeeper{beginner{}, doorman{}} {
		s := NewServer(ServerOptions{Keeper: keeper, Logger: hclog.NewNullLogger()})
		server := httptest.NewServer(s.handler(DoorTLS))
		defer server.Close()
		addresses = append(addresses, server.URL)
	}
	client, err := NewClient(ClientOptions{Addresses: addresses, Token: "operator"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if who, err := client.Whoami(t.Context()); err != nil || who.Role != eboot.RoleOperator {
		t.Errorf("%+v, %v", who, err)
	}
	response := get(t, addresses[0]+"/v1/tokens", "operator")
	defer response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable || !response.Close {
		t.Errorf("status %d, and the connection ends: %v", response.StatusCode, response.Close)
	}
}

// What an alert means depends on what was shown.
func TestHandshakesRefused(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	pair := server.TLS.Certificates[0]
	for want, certificate := range map[string]func(*tls.CertificateRequestInfo) (*tls.Certificate, error){
		"not of its peer port": nil,
		"--client-cert":        func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	} {
		client, err := NewClient(ClientOptions{Addresses: []string{server.URL}, TLS: func(string) *tls.Config {
			return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: certificate}
		}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Whoami(t.Context())
		if !errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		client.Close()
	}
}
