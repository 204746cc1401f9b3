package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/testutil"
)

// doorman knows a token and a certificate of each role: their text and their name are the role.
type doorman struct{}

func (doorman) TokenOf(text string) (eboot.Token, error) {
	if r, err := eboot.ParseRole(text); err == nil {
		return eboot.Token{Name: text, Role: r}, nil
	}
	return eboot.Token{}, fmt.Errorf("token: unknown: %w", eboot.ErrUnauthenticated)
}

func (doorman) OperatorOf(certificates []*x509.Certificate) (string, eboot.Role, error) {
	name := certificates[0].Subject.CommonName
	if r, err := eboot.ParseRole(name); err == nil {
		return name, r, nil
	}
	return "", "", fmt.Errorf("certificate of %s: of role server: %w", name, eboot.ErrUnauthenticated)
}

// routeRoles is who may do what, written down a second time: a change of one list without the
// other is a mistake. None of the roles behind it may be left out.
var routeRoles = map[eboot.Role]string{
	"": "GET /livez, GET /readyz",
	eboot.RoleViewer: `GET /metrics, GET /v1/whoami, GET /v1/cluster, GET /v1/cluster/ready, GET /v1/cluster/members,
		GET /v1/whitelist, GET /v1/slaves, GET /v1/slaves/{slave}/check, GET /v1/slaves/{slave}/explain,
		GET /v1/channels, GET /v1/channels/{channel}, GET /v1/channels/{channel}/rollout, POST /v1/channels/{channel}/rollout/plan, GET /v1/rollouts,
		GET /v1/bundles, GET /v1/bundles/{bundle}, GET /v1/bundles/{bundle}/boot, GET /v1/bundles/{bundle}/diff/{other}, GET /v1/bundles/{bundle}/manifest,
		GET /v1/boots, GET /v1/boots/follow, GET /v1/events, GET /v1/events/follow`,
	eboot.RolePublisher: `POST /v1/bundles/{bundle}/signatures, POST /v1/bundles/{bundle}/verify, POST /v1/publishes, PUT /v1/publishes/{publish}/blobs,
		PUT /v1/publishes/{publish}/manifest, POST /v1/publishes/{publish}/commit, DELETE /v1/publishes/{publish}`,
	eboot.RoleOperator: `POST /v1/cluster/transfer, PUT /v1/cluster/members/{server}/drained, POST /v1/whitelist, POST /v1/whitelist/deny,
		PUT /v1/channels/{channel}, POST /v1/channels/{channel}/undo, POST /v1/channels/{channel}/rollout, POST /v1/channels/{channel}/rollout/steer,
		PUT /v1/bundles/{bundle}/protected, DELETE /v1/bundles/{bundle}`,
	eboot.RoleAdmin: `POST /v1/cluster/init, DELETE /v1/cluster/members/{server}, GET /v1/tokens, POST /v1/tokens, DELETE /v1/tokens/{token},
		GET /v1/snapshot, POST /v1/snapshot`,
}

// sender is one way to send a request.
type sender struct {
	name   string
	door   Door
	token  string
	scheme string // of the token; "": Bearer
	cert   string // common name; "": none
	role   eboot.Role
}

func senders() []sender {
	all := []sender{
		{name: "nobody", door: DoorTLS}, {name: "unknown token", door: DoorTLS, token: "root"}, {name: "wrong certificate", door: DoorTLS, cert: "boot1"},
		{name: "wrong certificate, good token", door: DoorTLS, cert: "boot1", token: "admin"}, {name: "unknown token, good certificate", door: DoorTLS, cert: "admin", token: "x"},
		{name: "socket", door: DoorSocket, role: eboot.RoleAdmin}, {name: "insecure", door: DoorInsecure, role: eboot.RoleAdmin},
		{name: "socket, unknown token", door: DoorSocket, token: "x"}, {name: "insecure, viewer", door: DoorInsecure, token: "viewer", role: eboot.RoleViewer},
		{name: "lower case", door: DoorTLS, scheme: "bearer", token: "viewer", role: eboot.RoleViewer}, {name: "basic", door: DoorTLS, scheme: "Basic", token: "admin"},
	}
	for _, r := range eboot.Roles() {
		all = append(all, sender{name: "token of " + string(r), door: DoorTLS, token: string(r), role: r}, sender{name: "certificate of " + string(r), door: DoorTLS, cert: string(r), role: r})
	}
	return all
}

func (s sender) send(handler http.Handler, pattern string) (status int, body string) {
	method, path, _ := strings.Cut(pattern, " ")
	r := httptest.NewRequest(method, strings.NewReplacer("{", "", "}", "").Replace(path), nil)
	r.Host = "127.0.0.1"
	if s.token != "" {
		r.Header.Set("Authorization", cmp.Or(s.scheme, "Bearer")+" "+s.token)
	}
	if s.cert != "" {
		c := &x509.Certificate{}
		c.Subject.CommonName = s.cert
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// Every route against every role, by token and by certificate: who may is let through to the
// handler, who may not is not, and who is nobody is told nothing else.
func TestEveryRouteAgainstEveryRole(t *testing.T) {
	s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }})
	wanted := map[string]eboot.Role{}
	for role, patterns := range routeRoles {
		for pattern := range strings.SplitSeq(patterns, ",") {
			wanted[strings.TrimSpace(pattern)] = role
		}
	}
	routes := s.routes()
	if len(routes) != len(wanted) {
		t.Errorf("%d routes, %d in the list", len(routes), len(wanted))
	}
	const reached = http.StatusTeapot
	for _, route := range routes {
		role, there := wanted[route.pattern]
		if !there || role != route.role {
			t.Errorf("%s wants %q, the list says %q (%v)", route.pattern, route.role, role, there)
		}
		for _, from := range senders() {
			marked := route
			marked.handler = func(w http.ResponseWriter, r *http.Request) error {
				w.WriteHeader(reached)
				return nil
			}
			a := access{keeper: doorman{}, door: from.door}
			mux := http.NewServeMux()
			mux.HandleFunc(marked.pattern, s.handle(a, marked))
			want := http.StatusForbidden
			switch {
			case role == "" || from.role.Includes(role):
				want = reached
			case from.role == "":
				want = http.StatusUnauthorized
			}
			if got, body := from.send(s.guard(a, mux), route.pattern); got != want {
				t.Errorf("%s, %s: status %d, want %d: %s", route.pattern, from.name, got, want, body)
			}
		}
	}
	// The real handlers stand behind the same check.
	for _, pattern := range []string{"GET /v1/tokens", "POST /v1/snapshot", "GET /v1/nothing", "PATCH /livez"} {
		if status, body := (sender{door: DoorTLS}).send(s.handler(DoorTLS), pattern); status != http.StatusUnauthorized || strings.Contains(body, "such") {
			t.Errorf("%s by nobody: %d %s", pattern, status, body)
		}
	}
	if s.Refused() == 0 {
		t.Error("nothing was counted")
	}
}

// A publish that moves a channel decides what slaves run.
func TestPublisherMovesNoChannel(t *testing.T) {
	s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.NewNullLogger()})
	for role, want := range map[string]int{"publisher": http.StatusForbidden, "operator": http.StatusTeapot} {
		r := httptest.NewRequest("POST", "/v1/publishes/x/commit", strings.NewReader(`{"channel":"stable"}`))
		r.Header.Set("Authorization", "Bearer "+role)
		r.Header.Set(headerRequestID, "1")
		w := httptest.NewRecorder()
		func() {
			defer func() {
				if recover() != nil { // there is no backend: the handler was let go on
					w.Code = http.StatusTeapot
				}
			}()
			s.handler(DoorTLS).ServeHTTP(w, r)
		}()
		if w.Code != want {
			t.Errorf("%s: %d %s", role, w.Code, w.Body)
		}
	}
}

func TestWhoami(t *testing.T) {
	s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.NewNullLogger()})
	for _, c := range []struct {
		from sender
		want string
	}{
		{sender{door: DoorTLS, token: "viewer"}, `{"name":"viewer","via":"token","from":"192.0.2.1","role":"viewer"}`},
		{sender{door: DoorTLS, cert: "operator"}, `{"name":"operator","via":"certificate","from":"192.0.2.1","role":"operator"}`},
		{sender{door: DoorInsecure}, `{"name":"anybody","via":"insecure","from":"192.0.2.1","role":"admin"}`},
	} {
		if status, body := c.from.send(s.handler(c.from.door), "GET /v1/whoami"); status != 200 || strings.TrimSpace(body) != c.want {
			t.Errorf("%+v: %d %s", c.from, status, body)
		}
	}
}

// A request over the socket is known by its user; and what is refused hangs up.
func TestSocketKnowsItsUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	client := serveDoor(t, Socket(ln), DoorSocket, ClientOptions{Addresses: []string{"unix://" + path}})
	who, err := client.Whoami(t.Context())
	if want := fmt.Sprintf("uid %d (socket)", os.Getuid()); err != nil || who.String() != want || who.Role != eboot.RoleAdmin {
		t.Errorf("%+v, %v; want %s", who, err, want)
	}
}

func serveDoor(t *testing.T, ln net.Listener, door Door, o ClientOptions) *Client {
	t.Helper()
	s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.NewNullLogger(), Metrics: http.NotFoundHandler(), Live: func() error { return nil }})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln, door) }()
	client, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return client
}

// Who shows nothing is answered and cut off, however much it still wants to send, and
// cannot hold more connections than its share.
func TestStrangersHoldLittle(t *testing.T) {
	const share = 3
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client := serveDoor(t, Limit(narrow{tcp}, 100, share), DoorTLS, ClientOptions{Addresses: []string{"http://" + tcp.Addr().String()}, Token: "viewer", Timeout: 5 * time.Second})
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := dial()
	fmt.Fprintf(conn, "POST /v1/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nbegin")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 401 ") || !strings.Contains(string(answer), "unauthenticated") {
		t.Fatalf("%q, %v", answer, err)
	}
	for range share { // who asks for a long answer, and reads none, holds nothing either
		conn := dial().(*net.TCPConn)
		if err := conn.SetReadBuffer(1); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /v1/%s HTTP/1.1\r\nHost: x\r\n\r\n", strings.Repeat("&", 60_000))
	}
	reached(t, client, "strangers that do not read are to give up their places")
	var held []net.Conn
	for range share {
		held = append(held, dial())
	}
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("one more than its share was served")
	}
	_ = held[0].Close()
	reached(t, client, "a place that came free is to be given away")
}

// narrow is a listener whose connections hold little of what is not read, as over a real network:
// the loopback interface takes megabytes.
type narrow struct{ net.Listener }

func (n narrow) Accept() (net.Conn, error) {
	conn, err := n.Listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(1)
	}
	return conn, err
}

// reached waits until a client is answered.
func reached(t *testing.T, client *Client, what string) {
	t.Helper()
	testutil.Poll(t, 8*time.Second, what, func() bool {
		_, err := client.Whoami(t.Context())
		return err == nil
	})
	client.Close() // its connection has a place too
}

func TestNetworkOfASender(t *testing.T) {
	for addr, want := range map[string]string{"10.1.2.3": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3", "2001:db8::1": "2001:db8::", "2001:db8::2:0:0:1": "2001:db8::", "fe80::1": "fe80::"} {
		if got := network(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// The log of a server that is asked by many strangers stays short, and tokens are not in it.
func TestRefusalsAreLoggedSeldom(t *testing.T) {
	var log strings.Builder
	s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Info})})
	handler := s.handler(DoorTLS)
	for range 1000 {
		(sender{door: DoorTLS, token: "a-secret"}).send(handler, "GET /v1/bundles")
	}
	if n := strings.Count(log.String(), "\n"); n == 0 || n > refusalsLogged || strings.Contains(log.String(), "a-secret") || s.Refused() != 1000 {
		t.Errorf("%d lines for %d refusals: %s", n, s.Refused(), log.String())
	}
}

// What a stranger sends is told on one line, and no more of it than helps.
func TestRefusalsAreShort(t *testing.T) {
	long := strings.Repeat("%0a&\"", 20_000)
	for name, r := range map[string]*http.Request{
		"path":   httptest.NewRequest("GET", "/v1/"+strings.ReplaceAll(long, "\"", "%22"), nil),
		"method": httptest.NewRequest(strings.Repeat("A", 60_000), "/v1/tokens", nil),
		"origin": httptest.NewRequest("GET", "/v1/tokens", nil),
		"host":   httptest.NewRequest("GET", "/v1/tokens", nil),
	} {
		door := DoorTLS
		switch name {
		case "origin":
			r.Header.Set("Origin", "http://"+long)
		case "host":
			door, r.Host = DoorInsecure, long
		}
		var log strings.Builder
		s := NewServer(ServerOptions{Keeper: doorman{}, Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace})})
		w := httptest.NewRecorder()
		s.handler(door).ServeHTTP(w, r)
		lines := strings.Count(log.String(), "\n")
		if w.Code < 400 || w.Body.Len() == 0 || w.Body.Len() > 2048 || lines == 0 || lines > 2 || log.Len() > 4096 {
			t.Errorf("%s: status %d with %d bytes; %d lines of log with %d bytes: %.300s", name, w.Code, w.Body.Len(), lines, log.Len(), log.String())
		}
	}
	for text, want := range map[string]string{
		"/v1/bundles/app@1": "/v1/bundles/app@1", "a b": `"a b"`, "a\nb": `"a\nb"`, "": "", "é": `"\u00e9"`, strings.Repeat("x", 129): `"` + strings.Repeat("x", 128) + `"…`,
	} {
		if got := legible(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// A token goes nowhere in the clear but within this machine.
func TestTokenWantsTLS(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://boot1.example:4380": true, "http://127.0.0.1:4380": true, "http://localhost:4380": true, "http://[::1]:4380": true, "unix:///run/x": true,
		"http://10.0.0.1:4380": false, "http://boot1.example:4380": false, "https://user:pw@x:1": false,
	} {
		_, err := NewClient(ClientOptions{Addresses: []string{address}, Token: "t"})
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if !slices.Equal(ParseAddresses("a:1"), []string{"http://a:1"}) {
		t.Error("a bare address")
	}
}
