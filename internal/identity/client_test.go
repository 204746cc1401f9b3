package identity

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"eboot"
)

// Whom an operator's program takes for a server of its cluster.
func TestClientKnowsServers(t *testing.T) {
	issue := func(a *Authority, r Request) Pair {
		r.Lifetime = day
		pair, _, err := a.Issue(r, noon)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	prod, ca := authority(t, "prod")
	test, testCA := authority(t, "test")
	// An authority that was not made by eboot, and issues for several clusters.
	foreign := selfSigned(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	signer, err := readPair(foreign)
	if err != nil {
		t.Fatal(err)
	}
	foreignCA := &Authority{cluster: "prod", certificate: signer.Leaf, key: signer.PrivateKey.(crypto.Signer)}

	for name, c := range map[string]struct {
		trusted []byte
		pair    Pair
		host    string
		says    string // "": accepted
	}{
		"at any address":           {ca.Certificate, issue(prod, Request{Role: Server, Name: "boot1"}), "10.9.9.9", ""},
		"an operator":              {ca.Certificate, issue(prod, Request{Role: Operator, Name: "alice", Unit: "admin"}), "10.9.9.9", "not accepted"},
		"another cluster":          {ca.Certificate, issue(test, Request{Role: Server, Name: "boot1"}), "boot1", "unknown authority"},
		"its name, another's CA":   {testCA.Certificate, issue(&Authority{cluster: "prod", certificate: test.certificate, key: test.key}, Request{Role: Server, Name: "boot1"}), "boot1", "was not made for that cluster"},
		"both trusted":             {append(append([]byte{}, ca.Certificate...), testCA.Certificate...), issue(test, Request{Role: Server, Name: "boot1"}), "10.9.9.9", ""},
		"foreign CA, host":         {foreign.Certificate, issue(foreignCA, Request{Role: Server, Name: "boot1", DNS: []string{"boot1.example"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}), "10.0.0.1", ""},
		"foreign CA, another host": {foreign.Certificate, issue(foreignCA, Request{Role: Server, Name: "boot1", DNS: []string{"boot1.example"}}), "boot2.example", "was not made for that cluster"},
	} {
		client, err := ReadClient(c.trusted, Pair{})
		if err != nil {
			t.Fatal(err)
		}
		client.now = func() time.Time { return noon }
		err = client.check([]*x509.Certificate{parse(t, c.pair)}, c.host)
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, eboot.ErrDenied) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	client, err := ReadClient(nil, issue(prod, Request{Role: Operator, Name: "alice", Unit: "admin"}))
	if err != nil {
		t.Fatal(err)
	}
	if config := client.TLS("boot1.example"); config.InsecureSkipVerify || config.ServerName != "boot1.example" || config.GetClientCertificate == nil {
		t.Errorf("without an authority this machine's are asked: %+v", config)
	}
	if err := (&Client{now: time.Now}).check(nil, "x"); !errors.Is(err, eboot.ErrDenied) {
		t.Error(err)
	}
	for what, bad := range map[string]func() error{
		"authority":   func() error { _, err := ReadClient([]byte("x"), Pair{}); return err },
		"certificate": func() error { _, err := ReadClient(nil, Pair{Certificate: []byte("x")}); return err },
	} {
		if err := bad(); !errors.Is(err, eboot.ErrInvalid) || !strings.HasPrefix(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
