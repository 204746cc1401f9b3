package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"eboot"
)

// socketHost is the Host header of requests over a Unix socket.
const socketHost = "eboot.socket"

// How long a connection may take. With other servers to turn to, one that does not
// even accept within a lost packet's repetition is left sooner.
const (
	dialPatience          = 5 * time.Second
	dialPatienceOfSeveral = 1500 * time.Millisecond
)

// maxAnswer bounds what a server may answer at once, in bytes: some millions of rows of a list.
const maxAnswer = 1 << 30

// endpoint is one server, as a client reaches it.
type endpoint struct {
	name  string // as the user wrote it
	base  string
	token string
	http  *http.Client
	// certified: it shows a certificate of its own.
	certified bool
}

// newEndpoint reads an address. A token is not sent in the clear to another machine.
func newEndpoint(address string, dial time.Duration, o ClientOptions) (endpoint, error) {
	u, err := url.Parse(address)
	if err != nil {
		return endpoint{}, fmt.Errorf("address %q: %v: %w", address, err, eboot.ErrInvalid)
	}
	dialer := &net.Dialer{Timeout: dial}
	transport := &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
	}
	e := endpoint{name: address, token: o.Token, http: &http.Client{Transport: transport, CheckRedirect: stay}}
	plain := u.Host != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "" && u.User == nil
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
		e.base = "http://" + socketHost
	case u.Scheme == "https" && plain:
		e.base = "https://" + u.Host
		if o.TLS != nil {
			transport.TLSClientConfig = o.TLS(u.Hostname())
			e.certified = transport.TLSClientConfig.GetClientCertificate != nil
		}
	case u.Scheme == "http" && plain && o.Token != "" && !loopbackName(u.Hostname()):
		return endpoint{}, fmt.Errorf("address %q: a token is a secret and does not travel without TLS: write https://: %w", address, eboot.ErrInvalid)
	case u.Scheme == "http" && plain:
		e.base = "http://" + u.Host
	default:
		return endpoint{}, fmt.Errorf("address %q: want https://HOST:PORT, http://HOST:PORT or unix:///PATH: %w", address, eboot.ErrInvalid)
	}
	return e, nil
}

// stay follows no redirect: the API has none, and net/http would take the token along to
// another port of the host, without TLS too.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// unreachableError is a server to which nothing was sent, or whose answer to a mere
// question was cut off.
type unreachableError struct {
	server string
	cause  error
}

func (e *unreachableError) Error() string {
	if errors.Is(e.cause, fs.ErrPermission) && strings.HasPrefix(e.server, "unix:") {
		return fmt.Sprintf("server %s: %v; its socket is for root and the server's own group: use sudo, or another address (--address https://HOST:PORT) with a token, or that of a server with api.insecure (--address %s): %v", e.server, e.cause, DefaultAddress, eboot.ErrUnreachable)
	}
	return fmt.Sprintf("server %s: %v; is the server running, and is this its API address (--address, EBOOT_ADDRESS)?: %v", e.server, e.cause, eboot.ErrUnreachable)
}

func (e *unreachableError) Unwrap() error { return eboot.ErrUnreachable }

// send returns eboot.ErrUnreachable when nothing was sent, or when repeating
// does no harm; for a write that may have arrived, eboot.ErrUnknownOutcome; for
// anything else that was not answered in time, eboot.ErrTimeout.
func (e endpoint) send(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader, write bool) (*http.Response, error) {
	target := e.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var connected atomic.Bool // nothing is sent without a connection
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %v: %w", method, path, err, eboot.ErrInvalid)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	if e.token != "" {
		request.Header.Set("Authorization", "Bearer "+e.token)
	}
	response, err := e.http.Do(request)
	if err == nil {
		return response, nil
	}
	var urlError *url.Error
	if errors.As(err, &urlError) {
		err = urlError.Err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if refused := e.handshakeRefused(err); refused != "" { // before any request was read
		return nil, fmt.Errorf("server %s: %v; %s: %w", e.name, err, refused, eboot.ErrDenied)
	}
	switch {
	case write && connected.Load():
		return nil, fmt.Errorf("server %s: the request was sent and no answer came: %v: %w", e.name, err, eboot.ErrUnknownOutcome)
	case errors.Is(err, context.DeadlineExceeded) && connected.Load():
		return nil, fmt.Errorf("server %s: no answer in time: %w", e.name, eboot.ErrTimeout)
	}
	return nil, &unreachableError{server: e.name, cause: err}
}

// handshakeRefused says what to do when one side has not accepted the other, or its
// certificate; empty: err is of another kind.
func (e endpoint) handshakeRefused(err error) string {
	var wrong *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.As(err, &wrong), errors.Is(err, eboot.ErrDenied):
		return "is --ca-cert (EBOOT_CA_CERT) the authority of this cluster, the ca.pem of `eboot tls ca`?"
	case !errors.As(err, &op) || op.Op != "remote error": // an alert (crypto/tls, Conn.readRecord)
		return ""
	case e.certified:
		return "it does not accept the certificate of --client-cert (EBOOT_CLIENT_CERT), or is no server's API that speaks TLS 1.3"
	}
	return "is this the address of a server's API, which speaks TLS 1.3 and wants no certificate, and not of its peer port?"
}

// loopbackName reports whether a host is this machine in any case.
func loopbackName(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// begin sends a call and returns when the answer begins, which it must within wait;
// zero: as long as ctx lasts.
func (e endpoint) begin(ctx context.Context, wait time.Duration, k call, header http.Header, body io.Reader) (*http.Response, error) {
	if wait == 0 {
		return e.send(ctx, k.method, k.path, k.query, header, body, k.write || k.once)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(wait, func() { cancel(context.DeadlineExceeded) })
	response, err := e.send(ctx, k.method, k.path, k.query, header, body, k.write || k.once)
	timer.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	response.Body = &cancelBody{ReadCloser: response.Body, cancel: cancel}
	return response, nil
}

// cancelBody lets go of the context of an answer when it was read.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// decode reads an answer into result; nil: nothing of it matters. What a server
// refused is the error it named.
func decode(response *http.Response, accept []int, result any) error {
	defer response.Body.Close()
	ok := response.StatusCode == http.StatusOK
	for _, status := range accept {
		ok = ok || response.StatusCode == status
	}
	if !ok {
		return readError(response)
	}
	if result == nil {
		return nil
	}
	decoder := json.NewDecoder(io.LimitReader(response.Body, maxAnswer))
	read := func() error { return decoder.Decode(result) }
	if arriving, ok := result.(interface{ decodeFrom(*json.Decoder) error }); ok {
		read = func() error { return arriving.decodeFrom(decoder) }
	}
	if err := read(); err != nil {
		// The server said that it was done; only what it said of it is lost.
		return fmt.Errorf("answer: %v: %w", err, eboot.ErrUnknownOutcome)
	}
	return nil
}

func readError(response *http.Response) error {
	var body ErrorBody
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(data, &body)
	}
	if err != nil {
		body = ErrorBody{}
	}
	return restore(body.Error, response.StatusCode)
}
