package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"eboot"
)

// Client is what an operator's program knows: whom it trusts, and who it is.
type Client struct {
	roots       *x509.CertPool
	certificate *tls.Certificate // nil: it has none
	now         func() time.Time
}

// ReadClient reads the certificates of authorities in PEM (empty: those of this machine are trusted) and,
// unless p is zero, the certificate that is shown. Errors wrap eboot.ErrInvalid.
func ReadClient(authorities []byte, p Pair) (*Client, error) {
	c := &Client{now: time.Now}
	if len(authorities) > 0 {
		var err error
		if c.roots, err = readAuthorities(authorities); err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
	}
	if p.Certificate == nil && p.Key == nil {
		return c, nil
	}
	pair, err := readPair(p)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c.certificate = pair
	return c, nil
}

// TLS returns the configuration for connections to a host. A server is accepted whose certificate a
// trusted authority has signed and which either has the host's name, as everywhere, or is of role
// server of the cluster that the authority was made for: then it does not matter under which
// address it is found.
func (c *Client) TLS(host string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, NextProtos: []string{"http/1.1"}}
	if c.certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate, nil }
	}
	if c.roots == nil {
		return config
	}
	config.InsecureSkipVerify = true // VerifyConnection does it, on resumption too
	config.VerifyConnection = func(s tls.ConnectionState) error { return c.check(s.PeerCertificates, host) }
	return config
}

func (c *Client) check(certificates []*x509.Certificate, host string) error {
	if len(certificates) == 0 {
		return fmt.Errorf("the server has no certificate: %w", eboot.ErrDenied)
	}
	leaf := certificates[0]
	ways, err := chains(certificates, c.roots, c.now(), x509.ExtKeyUsageServerAuth)
	if err != nil {
		return fmt.Errorf("the server's certificate, of %q, is not accepted: %v: %w", abbreviate(leaf.Subject.String()), err, eboot.ErrDenied)
	}
	name, err := NameOf(leaf)
	if err != nil { // not one of ours
		if err := leaf.VerifyHostname(host); err != nil {
			return fmt.Errorf("the server's certificate: %v: %w", err, eboot.ErrDenied)
		}
		return nil
	}
	if name.Role != Server {
		return fmt.Errorf("the server's certificate is %s, of role %s: %w", name, name.Role, eboot.ErrDenied)
	}
	for _, way := range ways {
		if cluster, ok := clusterOf(way[len(way)-1]); ok && cluster == name.Cluster {
			return nil
		}
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return fmt.Errorf("the server's certificate is %s, and its authority was not made for that cluster: %v: %w", name, err, eboot.ErrDenied)
	}
	return nil
}
