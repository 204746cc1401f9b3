package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"eboot"
)

// Lifetimes of certificates where nothing else is said.
const (
	DefaultAuthorityLifetime = 10 * 365 * 24 * time.Hour
	DefaultLifetime          = 365 * 24 * time.Hour
)

// skew is how far the clocks of two servers may be apart: a certificate is valid for
// that long before it was made.
const skew = 5 * time.Minute

// Kinds of PEM blocks.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY" // PKCS 8
)

// Pair is a certificate and its key, both in PEM.
type Pair struct{ Certificate, Key []byte }

// Authority issues the certificates of one cluster.
type Authority struct {
	cluster     string
	certificate *x509.Certificate
	key         crypto.Signer
}

// Cluster is the name of the cluster whose certificates it issues.
func (a *Authority) Cluster() string { return a.cluster }

// Expires is when the authority does.
func (a *Authority) Expires() time.Time { return a.certificate.NotAfter }

// NewAuthority makes the authority of a cluster, valid for lifetime from now on. Errors
// wrap eboot.ErrInvalid.
func NewAuthority(cluster string, lifetime time.Duration, now time.Time) (*Authority, Pair, error) {
	if err := checkCluster(cluster); err != nil {
		return nil, Pair{}, err
	}
	key, err := newKey()
	if err != nil {
		return nil, Pair{}, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "eboot authority of " + cluster},
		URIs:      []*url.URL{authorityURI(cluster)},
		NotBefore: now.Add(-skew), NotAfter: now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	pair, err := sign(template, template, key, key)
	if err != nil {
		return nil, Pair{}, err
	}
	a, err := ReadAuthority(pair)
	return a, pair, err
}

func authorityURI(cluster string) *url.URL {
	return &url.URL{Scheme: scheme, Host: cluster, Path: "/ca"}
}

// clusterOf returns the cluster that an authority was made for, by `eboot tls ca`.
func clusterOf(c *x509.Certificate) (cluster string, ok bool) {
	for _, u := range c.URIs {
		if u.String() == authorityURI(u.Host).String() && checkCluster(u.Host) == nil {
			cluster = u.Host
		}
	}
	return cluster, c.IsCA && cluster != ""
}

// ReadAuthority reads what NewAuthority made. Errors wrap eboot.ErrInvalid.
func ReadAuthority(p Pair) (*Authority, error) {
	pair, err := readPair(p)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	a := &Authority{certificate: pair.Leaf}
	var ok bool
	if a.key, ok = pair.PrivateKey.(crypto.Signer); !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("certificate of %q: it cannot sign others: %w", abbreviate(pair.Leaf.Subject.String()), eboot.ErrInvalid)
	}
	if a.cluster, ok = clusterOf(pair.Leaf); !ok {
		return nil, fmt.Errorf("certificate of %q: it is not an authority that `eboot tls ca` made, which says for which cluster it is: %w",
			abbreviate(pair.Leaf.Subject.String()), eboot.ErrInvalid)
	}
	return a, nil
}

// Request is a certificate to be issued.
type Request struct {
	Role     Role
	Name     string
	IPs      []netip.Addr  // where TLS clients find it, for who checks that
	DNS      []string      // likewise, host names
	Unit     string        // organisational unit; "": none
	Lifetime time.Duration // cut off where the authority's own ends
}

// Issue makes a certificate with a key of its own, and says when it expires. Errors wrap eboot.ErrInvalid, or
// eboot.ErrConflict when the authority has expired.
func (a *Authority) Issue(r Request, now time.Time) (pair Pair, expires time.Time, err error) {
	name := Name{Cluster: a.cluster, Role: r.Role, Name: r.Name}
	if err := name.Check(); err != nil {
		return Pair{}, time.Time{}, err
	}
	if r.Lifetime <= 0 {
		return Pair{}, time.Time{}, fmt.Errorf("lifetime %s: want a positive one: %w", r.Lifetime, eboot.ErrInvalid)
	}
	if !now.Before(a.certificate.NotAfter) {
		return Pair{}, time.Time{}, fmt.Errorf("the authority expired on %s; make a new one: %w", a.certificate.NotAfter.Format(time.DateOnly), eboot.ErrConflict)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: r.Name}, URIs: []*url.URL{name.URI()},
		NotBefore: latest(now.Add(-skew), a.certificate.NotBefore), NotAfter: earliest(now.Add(r.Lifetime), a.certificate.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if r.Unit != "" {
		template.Subject.OrganizationalUnit = []string{r.Unit}
	}
	if r.Role == Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, ip := range r.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	for _, host := range r.DNS {
		if !IsHostName(host) {
			return Pair{}, time.Time{}, fmt.Errorf("DNS name %q: want a host name: %w", abbreviate(host), eboot.ErrInvalid)
		}
		template.DNSNames = append(template.DNSNames, host)
	}
	key, err := newKey()
	if err != nil {
		return Pair{}, time.Time{}, err
	}
	pair, err = sign(template, a.certificate, key, a.key)
	return pair, template.NotAfter.UTC().Truncate(time.Second), err
}

// IsHostName reports whether s is a host name of letters, digits and hyphens.
func IsHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		plain := strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
		if !plain || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign gives the template a serial number and its key, and has parent sign it.
func sign(template, parent *x509.Certificate, key, signer crypto.Signer) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer) // it makes up a serial number
	if err != nil {
		return Pair{}, fmt.Errorf("sign the certificate of %q: %v: %w", template.Subject.CommonName, err, eboot.ErrInvalid)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: private}),
	}, nil
}

// readPair reads a certificate, perhaps with those that lead to the authority behind it,
// and its key. Errors wrap eboot.ErrInvalid; they never show a key.
func readPair(p Pair) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(p.Certificate, p.Key)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, eboot.ErrInvalid)
	}
	return &pair, nil
}

// readAuthorities reads the certificates of one or several authorities.
func readAuthorities(text []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), 0
	for len(bytes.TrimSpace(text)) > 0 {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("holds a %q: only certificates belong there: %w", abbreviate(block.Type), eboot.ErrInvalid)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", err, eboot.ErrInvalid)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not that of an authority: %w", abbreviate(c.Subject.String()), eboot.ErrInvalid)
		}
		pool.AddCert(c)
		found++
	}
	if found == 0 {
		return nil, fmt.Errorf("holds no certificate in PEM: %w", eboot.ErrInvalid)
	}
	return pool, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
