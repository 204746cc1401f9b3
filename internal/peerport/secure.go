package peerport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"eboot"
)

// Credentials are how servers prove to each other who they are.
type Credentials interface {
	// Outgoing and Incoming return the TLS configurations of the one who dials and of the
	// one who accepts. Outgoing refuses who is no server of this cluster, with an error
	// that wraps eboot.ErrDenied; Incoming takes any certificate.
	Outgoing() *tls.Config
	Incoming() *tls.Config
	// CheckServer says why what came over Incoming is not the certificate of a server of
	// this cluster; the error wraps eboot.ErrDenied.
	CheckServer(certificates []*x509.Certificate) error
}

// application names the peer port within TLS, so that a connection for another port of
// eboot cannot be turned to this one.
const application = "eboot-peer/1"

// tlsHandshake is the first byte of a TLS connection (RFC 8446, 5.1); a preface is text.
const tlsHandshake = 22

// wrap returns the connection as the protocols use it. Nothing is read or written.
func (p *Port) wrap(raw net.Conn) net.Conn {
	if p.options.Credentials == nil {
		return raw
	}
	config := p.options.Credentials.Incoming()
	config.NextProtos = []string{application}
	return newVouched(tls.Server(raw, config), p.options.Credentials, func(err error) {
		p.refusals.log("no longer accepted", remoteIP(raw), reason(err))
	})
}

// recheckEvery is how long a connection that is in use may go on after its certificate has
// expired, or its authority was taken out of tls.ca.
const recheckEvery = 2 * time.Second

// vouched is a connection within TLS whose other side must stay acceptable: a connection that
// was opened with a stolen certificate does not outlive the authority of that. It is asked when
// something comes or goes; what nobody uses harms nobody.
type vouched struct {
	*tls.Conn
	credentials Credentials
	refused     func(error) // is called once when it is over; nil: nobody wants to know

	mu  sync.Mutex
	at  time.Time // of the latest check; zero: it was never accepted, and the port says why
	err error     // why it is over
}

var _ net.Conn = (*vouched)(nil)

func newVouched(conn *tls.Conn, c Credentials, refused func(error)) *vouched {
	return &vouched{Conn: conn, credentials: c, refused: refused}
}

// accept begins the checks: the other side was accepted at this moment.
func (v *vouched) accept() *vouched {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at = time.Now()
	return v
}

// check returns why the other side is not accepted any more, and closes the connection then.
func (v *vouched) check() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if v.err != nil || v.at.IsZero() || now.Sub(v.at) < recheckEvery {
		return v.err
	}
	v.at = now
	err := v.credentials.CheckServer(v.ConnectionState().PeerCertificates)
	if err == nil {
		return nil
	}
	v.err = fmt.Errorf("the connection is ended: %w", err)
	if v.refused != nil {
		v.refused(err)
	}
	_ = v.NetConn().Close() // without a goodbye, for which a write under way would be waited for
	return v.err
}

// Read passes on what came from a server that is still accepted.
func (v *vouched) Read(b []byte) (int, error) {
	n, err := v.Conn.Read(b)
	if refused := v.check(); refused != nil {
		return 0, refused
	}
	return n, err
}

// Write sends to a server that is still accepted.
func (v *vouched) Write(b []byte) (int, error) {
	if err := v.check(); err != nil {
		return 0, err
	}
	return v.Conn.Write(b)
}

// secure does the TLS handshake, where there are credentials. It returns what a refusal
// can be said over: the connection as wrapped; the raw one, to somebody who does not speak
// TLS; nil when there is nobody to tell. The refusal is nil when all is well.
func (p *Port) secure(ctx context.Context, conn *Conn) (answer net.Conn, r *refusal) {
	secured, ok := conn.Conn.(*vouched)
	if !ok {
		return conn.Conn, nil
	}
	err := secured.HandshakeContext(ctx)
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &header) && header.Conn != nil:
		return conn.raw, refuse(eboot.ErrDenied, "it does not speak TLS, and this server wants a certificate (tls.ca, tls.cert, tls.key)")
	case err != nil:
		return nil, refuse(eboot.ErrDenied, "TLS handshake: %v", err)
	}
	state := secured.ConnectionState()
	if state.NegotiatedProtocol != application {
		return secured, refuse(eboot.ErrDenied, "it does not mean the peer port of eboot")
	}
	if err := p.options.Credentials.CheckServer(state.PeerCertificates); err != nil {
		return secured, refuse(eboot.ErrDenied, "%s", reason(err))
	}
	return secured.accept(), nil
}

// secure does the handshake of the one who dials. Its errors are a *refusal, or the
// connection's.
func (d Dialer) secure(raw net.Conn) (net.Conn, error) {
	if d.Credentials == nil {
		return raw, nil
	}
	config := d.Credentials.Outgoing()
	config.NextProtos = []string{application}
	conn := tls.Client(raw, config)
	err := conn.Handshake()
	var header tls.RecordHeaderError
	switch {
	case err == nil && conn.ConnectionState().NegotiatedProtocol != application:
		return nil, refuse(eboot.ErrDenied, "it speaks TLS and is not the peer port of a server")
	case err == nil:
		return newVouched(conn, d.Credentials, nil).accept(), nil
	case errors.As(err, &header):
		return nil, refuse(eboot.ErrDenied, "it does not speak TLS: a server without certificates (tls.ca, tls.cert, tls.key), or another program")
	case errors.Is(err, eboot.ErrDenied):
		return nil, refuse(eboot.ErrDenied, "%s", reason(err))
	}
	return nil, fmt.Errorf("TLS handshake: %w", err)
}

// alert returns the reason that the other side gave when it ended a handshake, which with
// TLS 1.3 may be seen only by the first read; nil: it gave none.
func alert(err error) *refusal {
	var operation *net.OpError
	if errors.As(err, &operation) && operation.Op == "remote error" { // crypto/tls has no type for it
		return refuse(eboot.ErrDenied, "it ended the TLS handshake: %v", operation.Err)
	}
	return nil
}

// reason is the text of an error of Credentials, without the kind, which a refusal has.
func reason(err error) string {
	return printable(strings.TrimSuffix(err.Error(), ": "+eboot.ErrDenied.Error()))
}

// drain reads what the other side has sent already, and waits until it closes: the kernel
// answers a close that leaves something unread with a reset, which may overtake the text
// that was written. The deadline of the connection bounds it.
func drain(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, conn, 16<<10) // nobody wants it
	}
}
