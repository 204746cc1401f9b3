package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"eboot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func authority(t *testing.T, cluster string) (*Authority, Pair) {
	t.Helper()
	a, pair, err := NewAuthority(cluster, DefaultAuthorityLifetime, noon)
	if err != nil {
		t.Fatal(err)
	}
	return a, pair
}

func issue(t *testing.T, a *Authority, role Role, name string, lifetime time.Duration) Pair {
	t.Helper()
	request := Request{Role: role, Name: name, Lifetime: lifetime}
	if role == Operator {
		request.Unit = string(eboot.RoleOperator)
	}
	pair, expires, err := a.Issue(request, noon)
	if err != nil || !expires.Equal(noon.Add(lifetime)) {
		t.Fatal(expires, err)
	}
	return pair
}

func parse(t *testing.T, pair Pair) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(pair.Certificate)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIssue(t *testing.T) {
	a, _ := authority(t, "prod")
	pair, _, err := a.Issue(Request{
		Role: Server, Name: "boot1", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2")},
		DNS: []string{"boot1.example"}, Lifetime: 20 * DefaultAuthorityLifetime,
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, pair)
	if n, err := NameOf(c); err != nil || n != (Name{"prod", Server, "boot1"}) || n.String() != "eboot://prod/server/boot1" {
		t.Errorf("name %v, %v", n, err)
	}
	if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.ExtKeyUsage) != 2 || !c.NotAfter.Equal(a.Expires()) {
		t.Errorf("CA %v, usage %v %v, until %v", c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.NotAfter)
	}
	for _, host := range []string{"10.0.0.1", "10.0.0.2", "boot1.example"} {
		if err := c.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	pair, _, err = a.Issue(Request{Role: Operator, Name: "alice", Unit: "admin", Lifetime: day}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, pair); len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || strings.Join(c.Subject.OrganizationalUnit, "") != "admin" {
		t.Errorf("operator: %v, %v", c.ExtKeyUsage, c.Subject)
	}
	for name, r := range map[string]Request{
		"role": {Role: "ca", Name: "a", Lifetime: day}, "name": {Role: Server, Name: "a/b", Lifetime: day}, "no name": {Role: Server, Lifetime: day},
		"lifetime": {Role: Server, Name: "a"}, "host": {Role: Server, Name: "a", DNS: []string{"a b"}, Lifetime: day},
	} {
		if _, _, err := a.Issue(r, noon); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := a.Issue(Request{Role: Server, Name: "a", Lifetime: day}, a.Expires()); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("expired authority: %v", err)
	}
}

func TestReadAuthority(t *testing.T) {
	a, pair := authority(t, "prod")
	again, err := ReadAuthority(pair)
	if err != nil || again.Cluster() != "prod" || !again.Expires().Equal(a.Expires()) {
		t.Fatal(err)
	}
	_, other := authority(t, "prod")
	for name, p := range map[string]Pair{
		"a server's":    issue(t, a, Server, "boot1", day),
		"another key":   {pair.Certificate, other.Key},
		"no key":        {pair.Certificate, nil},
		"cut off":       {pair.Certificate[:100], pair.Key},
		"of no cluster": selfSigned(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true}),
		"of two roots":  selfSigned(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, URIs: []*url.URL{{Scheme: scheme, Host: "prod", Path: "/server/a"}}}),
	} {
		if _, err := ReadAuthority(p); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, cluster := range []string{"", "a b", "a..b", "a."} {
		if _, _, err := NewAuthority(cluster, day, noon); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("cluster %q: %v", cluster, err)
		}
	}
	for _, cluster := range []string{"Prod_1", "a+b~c-d.e", strings.Repeat("x", 64)} {
		a, _ := authority(t, cluster)
		if n, err := NameOf(parse(t, issue(t, a, Server, "a+b~c._-", day))); err != nil || n.Cluster != cluster {
			t.Errorf("cluster %q: %v, %v", cluster, n, err)
		}
	}
}

// selfSigned is a certificate that no authority of ours would issue.
func selfSigned(t *testing.T, template *x509.Certificate) Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), noon.Add(-day), noon.Add(day)
	pair, err := sign(template, template, key, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestNameOf(t *testing.T) {
	for _, uris := range [][]string{
		{}, {"https://prod/server/a"}, {"eboot://prod/server/a", "eboot://prod/operator/a"}, {"eboot://prod/ca"}, {"eboot://prod/server"},
		{"eboot://prod/server/a/b"}, {"eboot://prod/server/a?x"}, {"eboot://u@prod/server/a"}, {"eboot://prod:1/server/a"}, {"eboot:///server/a"},
		{"eboot://prod/root/a"}, {"eboot:prod/server/a"}, {"eboot://prod/server/%61"}, {"eboot://prod/server/a#x"}, {"eboot://prod/server/"},
	} {
		c := &x509.Certificate{}
		for _, text := range uris {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, u)
		}
		if n, err := NameOf(c); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v, %v", uris, n, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("eboot://prod/server/boot1")
	f.Add("eboot://prod/operator/a?b")
	f.Add("eboot://%41/server/a")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		n, err := ParseName(u)
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseName(n.URI()); err != nil || again != n {
			t.Fatalf("%q is %+v, and again %+v, %v", text, n, again, err)
		}
	})
}

// place is the files of one server.
type place struct {
	Options
	log *syncBuffer
	now time.Time
	mu  sync.Mutex
}

type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func newPlace(t *testing.T, ca []byte, pair Pair) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{now: noon, log: &syncBuffer{}, Options: Options{
		Cluster: "prod", CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "a.pem"), Key: filepath.Join(dir, "a-key.pem"),
	}}
	p.Now = func() time.Time { p.mu.Lock(); defer p.mu.Unlock(); return p.now }
	p.Logger = hclog.New(&hclog.LoggerOptions{Output: p.log})
	put(t, p.CA, ca)
	put(t, p.Cert, pair.Certificate)
	put(t, p.Key, pair.Key)
	return p
}

// put replaces a file as `eboot tls cert --replace` does, so that it is another inode.
func put(t *testing.T, path string, content []byte) {
	t.Helper()
	temporary := path + ".new"
	if err := errors.Join(os.WriteFile(temporary, content, 0o600), os.Rename(temporary, path)); err != nil {
		t.Fatal(err)
	}
}

func (p *place) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func TestOpen(t *testing.T) {
	a, ca := authority(t, "prod")
	_, otherCA := authority(t, "prod")
	b, _ := authority(t, "test")
	server := issue(t, a, Server, "boot1", 90*day)
	for name, c := range map[string]struct {
		ca   []byte
		pair Pair
		says string
	}{
		"OK":                  {ca.Certificate, server, ""},
		"OK two authorities":  {append(append([]byte("# old\n"), otherCA.Certificate...), ca.Certificate...), server, ""},
		"ErrOtherAuthority":   {otherCA.Certificate, server, "no authority of tls.ca"},
		"ErrOperator":         {ca.Certificate, issue(t, a, Operator, "alice", day), "want that of a server"},
		"ErrCluster":          {ca.Certificate, issue(t, b, Server, "boot1", day), `want that of a server of cluster "prod"`},
		"ErrKey":              {ca.Certificate, Pair{server.Certificate, ca.Key}, "private key does not match"},
		"ErrNoAuthority":      {[]byte("\n"), server, "holds no certificate"},
		"ErrKeyAsAuthority":   {append(bytes.Clone(ca.Certificate), ca.Key...), server, "only certificates belong there"},
		"ErrServerAsRoot":     {server.Certificate, server, "not that of an authority"},
		"ErrAuthorityServing": {ca.Certificate, ca, "want eboot://CLUSTER/ROLE/NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, c.ca, c.pair)
			opened, err := Open(p.Options)
			if c.says == "" {
				if err != nil || opened.Name().Name != "boot1" || !opened.Expires().Equal(noon.Add(90*day)) || opened.Warnings() != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("the error shows a file: %v", err)
			}
		})
	}
	p := newPlace(t, ca.Certificate, server)
	if err := os.Remove(p.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(p.Options); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
}

// New files are taken once they fit each other, and what cannot be used leaves the old
// ones in use, with one line in the log.
func TestFilesChange(t *testing.T) {
	a, ca := authority(t, "prod")
	p := newPlace(t, ca.Certificate, issue(t, a, Server, "boot1", 90*day))
	c, err := Open(p.Options)
	if err != nil {
		t.Fatal(err)
	}
	next := issue(t, a, Server, "boot2", 180*day)
	put(t, p.Key, next.Key)
	if c.Name().Name != "boot1" || len(c.Warnings()) > 0 {
		t.Error("looked at too early: a second has not passed")
	}
	for range 3 {
		p.pass(time.Second)
		if w := c.Warnings(); c.Name().Name != "boot1" || len(w) != 1 || !strings.Contains(w[0], "private key does not match") {
			t.Errorf("half of the pair: %v", w)
		}
	}
	if n := strings.Count(p.log.String(), "not taken"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	put(t, p.Cert, next.Certificate)
	p.pass(time.Second)
	if w := c.Warnings(); c.Name().Name != "boot2" || w != nil || !c.Expires().Equal(noon.Add(180*day)) {
		t.Errorf("both: %v, %v", c.Name(), w)
	}
	p.pass(2 * time.Hour)
	for name, content := range map[string][]byte{"damaged": next.Certificate[:300], "empty": nil} {
		put(t, p.Cert, content)
		p.pass(time.Second)
		if w := c.Warnings(); c.Name().Name != "boot2" || len(w) != 1 {
			t.Errorf("%s: %v", name, w)
		}
	}
	put(t, p.Cert, next.Certificate)
	p.pass(-time.Hour) // a clock that was set back does not end the looking
	if w := c.Warnings(); w != nil {
		t.Errorf("as it was: %v", w)
	}
	old, _, err := a.Issue(Request{Role: Server, Name: "boot3", Lifetime: day}, noon.Add(-2*day))
	if err != nil {
		t.Fatal(err)
	}
	put(t, p.Cert, old.Certificate)
	put(t, p.Key, old.Key)
	p.pass(time.Second)
	if w := c.Warnings(); c.Name().Name != "boot2" || len(w) != 1 || !strings.Contains(w[0], "valid from") {
		t.Errorf("one that has expired: %v", w)
	}
}

// A certificate that was made where the clock is ahead is taken when its time has come, though
// its files do not change again.
func TestFilesOfTheFuture(t *testing.T) {
	a, ca := authority(t, "prod")
	p := newPlace(t, ca.Certificate, issue(t, a, Server, "boot1", day))
	c, err := Open(p.Options)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := a.Issue(Request{Role: Server, Name: "boot2", Lifetime: day}, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	put(t, p.Cert, next.Certificate)
	put(t, p.Key, next.Key)
	p.pass(time.Minute)
	if w := c.Warnings(); c.Name().Name != "boot1" || len(w) != 1 || !strings.Contains(w[0], "valid from") {
		t.Errorf("too early: %v, %v", c.Name(), w)
	}
	p.pass(time.Hour)
	if w := c.Warnings(); c.Name().Name != "boot2" || w != nil {
		t.Errorf("in time: %v, %v", c.Name(), w)
	}
	if n := strings.Count(p.log.String(), "not taken"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

func TestExpiry(t *testing.T) {
	a, ca := authority(t, "prod")
	for _, lifetime := range []time.Duration{365 * day, 21 * day, 12 * time.Hour} {
		p := newPlace(t, ca.Certificate, issue(t, a, Server, "boot1", lifetime))
		c, err := Open(p.Options)
		if err != nil {
			t.Fatal(err)
		}
		before := min(30*day, (lifetime+skew)/3)
		p.pass(lifetime - before)
		if w := c.Warnings(); w != nil {
			t.Errorf("%v before the end of %v: %v", before, lifetime, w)
		}
		p.pass(time.Minute)
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "expires on 2026-") && !strings.Contains(w[0], "expires on 2027-") {
			t.Errorf("%v: %v", lifetime, w)
		}
		p.pass(before)
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "expired on") {
			t.Errorf("%v: %v", lifetime, w)
		}
		// A server that is started then boots slaves all the same.
		if c, err = Open(p.Options); err != nil || len(c.Warnings()) != 1 {
			t.Errorf("%v: started late: %v", lifetime, err)
		}
	}
	p := newPlace(t, ca.Certificate, issue(t, a, Server, "boot1", day))
	p.pass(-day)
	if c, err := Open(p.Options); err != nil || len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0], "not valid yet") {
		t.Errorf("too early: %v", err)
	}
}

func TestCheck(t *testing.T) {
	a, ca := authority(t, "prod")
	b, _ := authority(t, "test")
	stranger, _ := authority(t, "prod")
	p := newPlace(t, ca.Certificate, issue(t, a, Server, "boot1", 90*day))
	c, err := Open(p.Options)
	if err != nil {
		t.Fatal(err)
	}
	sameCA := &Authority{cluster: "test", certificate: a.certificate, key: a.key} // an authority that serves two clusters
	clientOnly := Request{Role: Operator, Name: "boot2", Lifetime: day}
	for name, tc := range map[string]struct {
		pair     Pair
		server   string // what the error says; "": accepted
		operator string
	}{
		"server":                     {issue(t, a, Server, "boot2", day), "", "of role server, not operator"},
		"operator":                   {issue(t, a, Operator, "alice", day), "of role operator, not server", ""},
		"server of another cluster":  {issue(t, sameCA, Server, "boot2", day), `of cluster "test", not of "prod"`, `of cluster "test"`},
		"another cluster's own":      {issue(t, b, Server, "boot2", day), "unknown authority", "unknown authority"},
		"same name, other authority": {issue(t, stranger, Server, "boot2", day), "unknown authority", "unknown authority"},
		"the authority itself":       {ca, "want eboot://CLUSTER/ROLE/NAME", "want eboot://"},
		"expired":                    {issue(t, a, Server, "boot2", time.Minute), "expired", "expired"},
		"nobody":                     {Pair{}, "no certificate", "no certificate"},
		"operator of nothing":        {granting(t, a, ""), "of role operator", "organisational units"},
		"operator of something else": {granting(t, a, "root"), "of role operator", "grants nothing"},
		"not for servers":            {forClientsOnly(t, a, clientOnly), "not for the use as a TLS server", "of role server"},
	} {
		var chain []*x509.Certificate
		if tc.pair.Certificate != nil {
			chain = append(chain, parse(t, tc.pair))
		}
		if name == "expired" {
			p.pass(time.Hour)
			defer p.pass(-time.Hour)
		}
		check := func(err error, want string) {
			if want == "" && err != nil || want != "" && (!errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		check(c.CheckServer(chain), tc.server)
		_, role, err := c.CheckOperator(chain)
		if (role == eboot.RoleOperator) != (tc.operator == "") {
			t.Errorf("%s: granted %q", name, role)
		}
		check(err, tc.operator)
	}
}

// granting is an operator's certificate as another authority may make it.
func granting(t *testing.T, a *Authority, unit string) Pair {
	t.Helper()
	pair, _, err := a.Issue(Request{Role: Operator, Name: "alice", Unit: unit, Lifetime: day}, noon)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// forClientsOnly is a server's certificate that may only be used by a TLS client.
func forClientsOnly(t *testing.T, a *Authority, r Request) Pair {
	t.Helper()
	pair, _, err := a.Issue(r, noon)
	if err != nil {
		t.Fatal(err)
	}
	template := parse(t, pair)
	template.URIs = []*url.URL{Name{"prod", Server, r.Name}.URI()}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if pair, err = sign(template, a.certificate, key, a.key); err != nil {
		t.Fatal(err)
	}
	return pair
}

// What listens for operators takes those with a certificate of tls.ca and those without
// any, and no other.
func TestForOperators(t *testing.T) {
	a, ca := authority(t, "prod")
	stranger, _ := authority(t, "prod")
	pair, _, err := a.Issue(Request{Role: Server, Name: "boot1", DNS: []string{"boot1"}, Lifetime: 90 * day}, noon)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t, ca.Certificate, pair)
	c, err := Open(p.Options)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Certificate)
	for name, tc := range map[string]struct {
		pair Pair
		ok   bool
		who  string
	}{
		"alice": {issue(t, a, Operator, "alice", day), true, "alice"}, "nobody": {Pair{}, true, ""}, "stranger": {issue(t, stranger, Operator, "alice", day), false, ""},
	} {
		ours, theirs := net.Pipe()
		clientConfig := &tls.Config{RootCAs: roots, ServerName: "boot1", Time: p.Now}
		if tc.pair.Certificate != nil {
			pair, err := readPair(tc.pair)
			if err != nil {
				t.Fatal(err)
			}
			clientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
		}
		server, client := tls.Server(theirs, c.ForOperators()), tls.Client(ours, clientConfig)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var both sync.WaitGroup
		both.Go(func() { // it also takes the alert of a server that refuses
			if client.HandshakeContext(ctx) == nil {
				_, _ = client.Read(make([]byte, 1))
			}
		})
		err := server.HandshakeContext(ctx)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if chains := server.ConnectionState().VerifiedChains; err == nil && (len(chains) > 0) != (tc.who != "") {
			t.Errorf("%s: %d chains", name, len(chains))
		} else if err == nil && tc.who != "" {
			if n, role, err := c.CheckOperator(chains[0]); err != nil || n.Name != tc.who || role != eboot.RoleOperator {
				t.Errorf("%s: %v %q, %v", name, n, role, err)
			}
		}
		cancel()
		_ = theirs.Close()
		_ = ours.Close()
		both.Wait()
	}
}
