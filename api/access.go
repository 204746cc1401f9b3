package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"eboot"
)

// Door is a way into the API. Each listener is one.
type Door int

// Doors, and who is let in.
const (
	// DoorTLS: whoever shows a token, or a certificate of an operator.
	DoorTLS Door = iota
	// DoorSocket: whoever could open the Unix socket, as an admin. Its file says who can.
	DoorSocket
	// DoorInsecure: everybody, as an admin, unless a token is shown. For trials.
	DoorInsecure
)

// Gatekeeper knows the operators.
type Gatekeeper interface {
	// TokenOf returns the token with this text. eboot.ErrUnauthenticated: there is none, it was
	// revoked, or it has expired; eboot.ErrUnavailable: this server cannot know. The error does
	// not show the text.
	TokenOf(text string) (eboot.Token, error)
	// OperatorOf returns the name in an operator's certificate and the role that it grants.
	// eboot.ErrUnauthenticated says why these certificates are not accepted.
	OperatorOf(certificates []*x509.Certificate) (name string, role eboot.Role, err error)
}

// Caller is who sent a request, and what it may do.
type Caller struct {
	eboot.Actor
	Role    eboot.Role `json:"role"`
	Expires time.Time  `json:"expires_at,omitzero"` // of a token; zero: never
}

// callerKey is the key of the Caller in the context of a request.
type callerKey struct{}

// caller is who sent r. It is somebody behind every route that wants a role.
func caller(r *http.Request) Caller {
	c, _ := r.Context().Value(callerKey{}).(Caller)
	return c
}

// stillKey is the key of a function in the context of a request: whether its sender would still
// be known.
type stillKey struct{}

// still reports whether who sent r may go on listening: a token may have been revoked since,
// a certificate have expired.
func still(r *http.Request) bool {
	known, ok := r.Context().Value(stillKey{}).(func() error)
	return !ok || known() == nil
}

// access lets requests through, or not.
type access struct {
	keeper Gatekeeper
	door   Door
}

// refused counts and logs what was not let through.
type refused struct {
	count  atomic.Uint64
	seldom rate.Sometimes
}

// The log has at most so many refusals a minute: whoever can connect must not fill it.
const (
	refusalsLogged = 3
	refusalsPause  = time.Minute
)

// identify says who sent r.
func (a access) identify(r *http.Request) (Caller, error) {
	header := r.Header.Get("Authorization")
	scheme, text, found := strings.Cut(header, " ")
	shown := found && strings.EqualFold(scheme, "Bearer") // RFC 9110, section 11.1: in any case
	if !shown && header != "" {
		return Caller{}, fmt.Errorf("header Authorization: want Bearer and a token of eboot: %w", eboot.ErrUnauthenticated)
	}
	from := remoteAddress(r)
	var certified *Caller
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		// One that is not accepted is refused also with a good token: something is wrong.
		name, role, err := a.keeper.OperatorOf(r.TLS.PeerCertificates)
		if err != nil {
			return Caller{}, err
		}
		certified = &Caller{Actor: eboot.Actor{Name: name, Via: eboot.ViaCertificate, From: from}, Role: role}
	}
	switch {
	case shown:
		t, err := a.keeper.TokenOf(text)
		if err != nil {
			return Caller{}, err
		}
		return Caller{Actor: eboot.Actor{Name: t.Name, Via: eboot.ViaToken, From: from}, Role: t.Role, Expires: t.ExpiresAt}, nil
	case certified != nil:
		return *certified, nil
	case a.door == DoorSocket:
		return Caller{Actor: eboot.Actor{Name: r.RemoteAddr, Via: eboot.ViaSocket}, Role: eboot.RoleAdmin}, nil
	case a.door == DoorInsecure:
		return Caller{Actor: eboot.Actor{Name: "anybody", Via: eboot.ViaInsecure, From: from}, Role: eboot.RoleAdmin}, nil
	}
	return Caller{}, fmt.Errorf("show a token (--token, EBOOT_TOKEN) or an operator's certificate (--client-cert, --client-key): %w", eboot.ErrUnauthenticated)
}

// remoteAddress is the address r came from, without the port; empty: not over TCP.
func remoteAddress(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return from.Addr().Unmap().WithZone("").String()
}

// let returns r with its Caller when that may do what wants role.
func (a access) let(r *http.Request, role eboot.Role) (*http.Request, error) {
	c, err := a.identify(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asked(r), err)
	}
	original := r
	again := func() error { _, err := a.identify(original); return err }
	ctx := context.WithValue(context.WithValue(r.Context(), callerKey{}, c), stillKey{}, again)
	r = r.WithContext(ctx)
	return r, permit(r, role, asked(r))
}

// permit reports whether the caller of r may do what wants role.
func permit(r *http.Request, role eboot.Role, what string) error {
	if c := caller(r); !c.Role.Includes(role) {
		return fmt.Errorf("%s: wants the role %s, and %s has %s: %w", what, role, c.Actor, c.Role, eboot.ErrDenied)
	}
	return nil
}

// maxShown is how many bytes of what a stranger sent are shown, in the log and in the answer.
const maxShown = 128

// asked is what a request wants, on one line of bounded length. Of the path as it was sent:
// decoded, it may hold anything.
func asked(r *http.Request) string {
	return legible(r.Method) + " " + legible(r.URL.EscapedPath())
}

// legible is text of a sender on one line, of bounded length.
func legible(text string) string {
	cut := ""
	if len(text) > maxShown {
		text, cut = text[:maxShown], "…"
	}
	if cut != "" || strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' }) {
		text = strconv.QuoteToASCII(text)
	}
	return text + cut
}

// turnedAway counts and logs a request that was not let through, and hangs up: nobody
// waits for the rest of what it may send.
func (s *Server) turnedAway(w http.ResponseWriter, r *http.Request, err error) {
	n := s.refused.count.Add(1)
	s.refused.seldom.Do(func() {
		s.logger.Warn("request refused", "from", r.RemoteAddr, "error", err, "refused_so_far", n)
	})
	if errors.Is(err, eboot.ErrUnauthenticated) {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if !errors.Is(err, eboot.ErrDenied) { // that is somebody
		hangUp(w)
	}
	s.fail(w, r, err)
}

// strangersRead is how long somebody who need not be known may take to read an answer.
const strangersRead = 10 * time.Second

// hangUp has the connection of somebody who need not be known end with the answer: net/http would
// wait for a body, or for what it wrote to be read, as long as it takes.
func hangUp(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	connection := http.NewResponseController(w) // best effort: the answer is what counts
	_ = connection.SetReadDeadline(time.Now().Add(time.Second))
	_ = connection.SetWriteDeadline(time.Now().Add(strangersRead))
}

// Refused is how many requests were not let through, for want of a known sender or of a
// role.
func (s *Server) Refused() uint64 { return s.refused.count.Load() }

func (s *Server) whoami(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, caller(r))
}
