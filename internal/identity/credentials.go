package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/internal/fsutil"
)

const (
	lookEvery   = time.Second         // between two looks at the files, at least
	warnBefore  = 30 * 24 * time.Hour // and at most a third of the lifetime
	maxFileSize = 1 << 20
)

// Options of Open.
type Options struct {
	// Cluster is the name of this server's cluster.
	Cluster string
	// CA, Cert and Key are the paths of PEM files: the authorities that are trusted, this
	// server's certificate and its key.
	CA, Cert, Key string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Logger; nil: nothing is logged.
	Logger hclog.Logger
}

func (o Options) paths() [3]string { return [3]string{o.CA, o.Cert, o.Key} }

// Credentials are the certificate of a server and the authorities it trusts, as the files
// have them at the moment. They are safe for use by several goroutines.
type Credentials struct {
	options Options
	loaded  atomic.Pointer[loaded]
	problem atomic.Pointer[string] // why newer files are not in use; nil: there are none

	mu     sync.Mutex // one look at a time
	looked time.Time
	seen   [3]os.FileInfo // nil: it could not be looked at
}

// loaded is what was in the files at one time.
type loaded struct {
	certificate *tls.Certificate
	name        Name
	roots       *x509.CertPool
	from, until time.Time // when everything on the way to the authority is valid
}

// Open reads the files. One that cannot be read is the error of package os; otherwise
// errors wrap eboot.ErrInvalid. A certificate that has expired is taken, with an error in
// the log: a server whose peers refuse it still boots slaves.
func Open(o Options) (*Credentials, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	c := &Credentials{options: o}
	now := o.Now()
	c.looked, c.seen = now, c.stat()
	l, err := c.read(now)
	if err != nil {
		return nil, err
	}
	c.loaded.Store(l)
	if key := c.seen[2]; key != nil && key.Mode().Perm()&0o007 != 0 {
		o.Logger.Warn("everybody on this machine may read the key of the certificate; chmod 0600 it", "tls.key", o.Key)
	}
	o.Logger.Info("certificate loaded", "name", l.name, "expires", l.until.Format(time.RFC3339))
	return c, nil
}

// Name is this server's, as its certificate has it.
func (c *Credentials) Name() Name { return c.current().name }

// Expires is when this server's certificate does, or that of its authority if that is
// earlier.
func (c *Credentials) Expires() time.Time { return c.current().until }

// Warnings says in one sentence each what somebody has to see to.
func (c *Credentials) Warnings() []string {
	l, now := c.current(), c.options.Now()
	var w []string
	day := l.until.UTC().Format("2006-01-02 15:04 MST")
	switch {
	case now.After(l.until):
		w = append(w, fmt.Sprintf("the certificate of this server (tls.cert) expired on %s: other servers refuse it; make a new one with `eboot tls cert --replace`, no restart is needed", day))
	case now.Before(l.from):
		w = append(w, "the certificate of this server (tls.cert) is not valid yet: other servers refuse it; is the clock of this machine right?")
	case l.until.Sub(now) < min(warnBefore, l.until.Sub(l.from)/3):
		w = append(w, fmt.Sprintf("the certificate of this server (tls.cert) expires on %s; make a new one with `eboot tls cert --replace` in time, no restart is needed", day))
	}
	if p := c.problem.Load(); p != nil {
		w = append(w, *p)
	}
	return w
}

// Outgoing returns the configuration for connections to other servers: only a server of
// this cluster is accepted.
func (c *Credentials) Outgoing() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.current().certificate, nil
		},
		// Servers are known by role and cluster, not by the address that was dialled.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return c.CheckServer(s.PeerCertificates) },
	}
}

// Incoming returns the configuration for connections of other servers. It takes any
// certificate: CheckServer must follow, whose reason can then be told to the other side.
func (c *Credentials) Incoming() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current().certificate, nil },
	}
}

// ForOperators returns the configuration of a listener for operators. They need not have
// a certificate; one that they have must be of an authority of tls.ca, and is then found
// in tls.ConnectionState.VerifiedChains: CheckOperator says whose it is.
func (c *Credentials) ForOperators() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			l := c.current()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*l.certificate}, Time: c.options.Now,
				ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: l.roots, SessionTicketsDisabled: true,
				NextProtos: []string{"http/1.1"},
			}, nil
		},
	}
}

// CheckServer reports whether certificates, as the other side of a connection sent them,
// are those of a server of this cluster at this moment. The error says why not and wraps
// eboot.ErrDenied.
func (c *Credentials) CheckServer(certificates []*x509.Certificate) error {
	_, err := c.check(certificates, Server)
	return err
}

// CheckOperator returns the name of the operator of this cluster whose certificates these
// are, likewise, and the role that they grant.
func (c *Credentials) CheckOperator(certificates []*x509.Certificate) (Name, eboot.Role, error) {
	name, err := c.check(certificates, Operator)
	if err != nil {
		return Name{}, "", err
	}
	units := certificates[0].Subject.OrganizationalUnit
	if len(units) != 1 {
		return Name{}, "", fmt.Errorf("its certificate, %s, has %d organisational units, and one of them must say what it grants (`eboot tls cert --grant`): %w", name, len(units), eboot.ErrDenied)
	}
	role, err := eboot.ParseRole(units[0])
	if err != nil {
		return Name{}, "", fmt.Errorf("its certificate, %s, grants nothing: %v: %w", name, err, eboot.ErrDenied)
	}
	return name, role, nil
}

func (c *Credentials) check(certificates []*x509.Certificate, role Role) (Name, error) {
	if len(certificates) == 0 {
		return Name{}, fmt.Errorf("it has no certificate: %w", eboot.ErrDenied)
	}
	leaf := certificates[0]
	if _, err := chains(certificates, c.current().roots, c.options.Now(), x509.ExtKeyUsageClientAuth); err != nil {
		return Name{}, fmt.Errorf("its certificate, of %q, is not accepted: %v: %w", abbreviate(leaf.Subject.String()), err, eboot.ErrDenied)
	}
	n, err := NameOf(leaf)
	switch {
	case err != nil:
		return Name{}, fmt.Errorf("%v: %w", err, eboot.ErrDenied)
	case n.Cluster != c.options.Cluster:
		return Name{}, fmt.Errorf("its certificate is %s, of cluster %q, not of %q: %w", n, n.Cluster, c.options.Cluster, eboot.ErrDenied)
	case n.Role != role:
		return Name{}, fmt.Errorf("its certificate is %s, of role %s, not %s: %w", n, n.Role, role, eboot.ErrDenied)
	case role == Server && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return Name{}, fmt.Errorf("its certificate, %s, is not for the use as a TLS server: %w", n, eboot.ErrDenied)
	}
	return n, nil
}

// chains returns the ways from a certificate, the first, to a root, for a use.
func chains(certificates []*x509.Certificate, roots *x509.CertPool, now time.Time, use x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range certificates[1:] {
		between.AddCert(c)
	}
	return certificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
}

// current looks at the files again when it is time, unless somebody else does already:
// nobody waits for a slow disk twice.
func (c *Credentials) current() *loaded {
	if c.mu.TryLock() {
		now := c.options.Now()
		if since := now.Sub(c.looked); since >= lookEvery || since < 0 {
			c.looked = now
			c.look(now)
		}
		c.mu.Unlock()
	}
	return c.loaded.Load()
}

// look takes the files when they have changed and are good; c.mu is held. Those that were not
// good are read again each time: a mode, an owner or the clock may be put right, which shows in
// no time stamp.
func (c *Credentials) look(now time.Time) {
	found := c.stat() // before they are read: what changes meanwhile is seen next time
	known := c.problem.Load()
	if known == nil && same(c.seen, found) {
		return
	}
	c.seen = found
	before := c.loaded.Load()
	l, err := c.read(now)
	if err == nil && (now.After(l.until) || now.Before(l.from)) {
		err = fmt.Errorf("the certificate is valid from %s to %s: %w", l.from.Format(time.RFC3339), l.until.Format(time.RFC3339), eboot.ErrInvalid)
	}
	if err != nil {
		problem := "the certificate files have changed and are not taken, those from before stay in use: " + err.Error()
		if known != nil && *known == problem {
			return
		}
		c.problem.Store(&problem)
		c.options.Logger.Error("certificate files have changed and are not taken; those from before stay in use", "error", err)
		return
	}
	c.loaded.Store(l)
	c.problem.Store(nil)
	c.options.Logger.Info("certificate loaded again", "name", l.name, "expires", l.until.Format(time.RFC3339), "before", before.until.Format(time.RFC3339))
}

func (c *Credentials) stat() (found [3]os.FileInfo) {
	for i, path := range c.options.paths() {
		if info, err := os.Stat(path); err == nil {
			found[i] = info
		}
	}
	return found
}

func same(a, b [3]os.FileInfo) bool {
	for i := range a {
		if (a[i] == nil) != (b[i] == nil) {
			return false
		}
		if a[i] != nil && (!os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size()) {
			return false
		}
	}
	return true
}

// read reads the files and checks that they fit each other, this cluster and a server.
// Whether they are valid at this time is left to the caller.
func (c *Credentials) read(now time.Time) (*loaded, error) {
	var content [3][]byte
	for i, path := range c.options.paths() {
		var err error
		if content[i], err = fsutil.ReadSmall(path, maxFileSize); err != nil {
			return nil, fmt.Errorf("%s: %w", [...]string{"tls.ca", "tls.cert", "tls.key"}[i], err)
		}
	}
	roots, err := readAuthorities(content[0])
	if err != nil {
		return nil, fmt.Errorf("tls.ca: %s: %w", c.options.CA, err)
	}
	pair, err := readPair(Pair{Certificate: content[1], Key: content[2]})
	if err != nil {
		return nil, fmt.Errorf("tls.cert %s with tls.key %s: %w", c.options.Cert, c.options.Key, err)
	}
	wrong := func(err error) error { return fmt.Errorf("tls.cert: %s: %w", c.options.Cert, err) }
	l := &loaded{certificate: pair, roots: roots, from: pair.Leaf.NotBefore, until: pair.Leaf.NotAfter}
	if l.name, err = NameOf(pair.Leaf); err != nil {
		return nil, wrong(err)
	}
	if l.name.Cluster != c.options.Cluster || l.name.Role != Server {
		return nil, wrong(fmt.Errorf("it is %s; want that of a server of cluster %q (cluster.name): %w", l.name, c.options.Cluster, eboot.ErrInvalid))
	}
	if !slices.Contains(pair.Leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return nil, wrong(fmt.Errorf("it must be for the use as TLS server and as TLS client: %w", eboot.ErrInvalid))
	}
	var certificates []*x509.Certificate
	for _, der := range pair.Certificate {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wrong(fmt.Errorf("%v: %w", err, eboot.ErrInvalid))
		}
		certificates = append(certificates, one)
	}
	ways, err := chains(certificates, roots, now, x509.ExtKeyUsageClientAuth)
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		l.from, l.until = latest(l.from, invalid.Cert.NotBefore), earliest(l.until, invalid.Cert.NotAfter)
	case err != nil:
		return nil, wrong(fmt.Errorf("no authority of tls.ca (%s) has signed it: %v: %w", c.options.CA, err, eboot.ErrInvalid))
	default:
		for _, one := range ways[0] {
			l.from, l.until = latest(l.from, one.NotBefore), earliest(l.until, one.NotAfter)
		}
	}
	return l, nil
}
