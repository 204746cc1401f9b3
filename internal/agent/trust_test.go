package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/api"
	"eboot/config"
	"eboot/fsm"
	"eboot/internal/testutil"
	"eboot/signature"
)

func signer(t *testing.T) signature.SecretKey {
	t.Helper()
	k, err := signature.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyFile(t *testing.T, k signature.SecretKey) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signer.pub")
	if err := os.WriteFile(path, k.Public().Encode("of a test"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// trusting returns c with the keys of signers, of which threshold must have signed.
func trusting(t *testing.T, c config.Config, threshold int, signers ...signature.SecretKey) config.Config {
	t.Helper()
	c.Trust = config.Trust{Threshold: threshold}
	for _, k := range signers {
		c.Trust.Keys = append(c.Trust.Keys, keyFile(t, k))
	}
	return c
}

func signs(signers ...signature.SecretKey) func(eboot.Bundle) ([]eboot.Signature, error) {
	return func(b eboot.Bundle) (signatures []eboot.Signature, err error) {
		for _, k := range signers {
			s, err := k.SignBundle(b)
			if err != nil {
				return nil, err
			}
			signatures = append(signatures, s)
		}
		return signatures, nil
	}
}

// tryPublish is publish with signatures, for ref.
func (s *server) tryPublish(t *testing.T, ref eboot.Ref, tree files, channel string, sign func(eboot.Bundle) ([]eboot.Signature, error)) error {
	t.Helper()
	p := api.Publish{Ref: ref, ERTS: []string{testERTS}, BootScript: "releases/1/start.boot", Channel: channel, Source: tree}
	if sign != nil {
		b := eboot.Bundle{Name: ref.Name, Version: ref.Version, ERTS: testERTS, Manifest: eboot.DigestOf(tree.Manifest().Encode()), BootScript: p.BootScript}
		signatures, err := sign(b)
		if err != nil {
			t.Fatal(err)
		}
		p.Signatures = map[string][]eboot.Signature{testERTS: signatures}
	}
	_, err := s.client.Publish(t.Context(), p)
	return err
}

func (s *server) sign(t *testing.T, ref eboot.Ref, signers ...signature.SecretKey) error {
	t.Helper()
	details, err := s.client.Bundle(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	b := details[0].Bundle
	signatures, err := signs(signers...)(b)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.client.SignBundle(t.Context(), ref, api.BundleSignatures{ERTS: b.ERTS, Manifest: b.Manifest, Signatures: signatures})
	return err
}

func denied(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("%s: %v, want it denied", what, err)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v, want it to say %q", what, err, part)
		}
	}
}

// Nothing that too few have signed comes in, whichever way it is tried.
func TestUnsignedIsRefusedAtTheDoor(t *testing.T) {
	t.Parallel()
	alice, bob, eve := signer(t), signer(t), signer(t)
	c := settings(t)
	s := start(t, c)
	s.publish(t, "1", eboot.DefaultChannel)
	s.publish(t, "2", eboot.DefaultChannel)
	s.stop(t)
	s = start(t, trusting(t, c, 2, alice, bob))

	names := []string{alice.Public().ID.String(), bob.Public().ID.String(), "want 2", "eboot bundle sign app@3"}
	denied(t, "publish unsigned", s.tryPublish(t, app("3"), release("3"), "", nil), append(names, "is not signed")...)
	denied(t, "publish with one signature", s.tryPublish(t, app("3"), release("3"), eboot.DefaultChannel, signs(alice)), names...)
	denied(t, "publish with a stranger's", s.tryPublish(t, app("3"), release("3"), "", signs(alice, bob, eve)), eve.Public().ID.String()+" is not trusted")
	other := signs(alice, bob)
	denied(t, "publish with signatures of another tree", s.tryPublish(t, app("3"), release("3"), "", func(b eboot.Bundle) ([]eboot.Signature, error) {
		b.Manifest = eboot.DigestOf([]byte("other"))
		return other(b)
	}), "does not match")
	if found := s.machine.State().BundlesOf(app("3")); len(found) > 0 {
		t.Fatalf("%v came in", found)
	}
	if err := s.tryPublish(t, app("3"), release("3"), eboot.DefaultChannel, signs(bob, alice)); err != nil {
		t.Fatalf("publish with two signatures: %v", err)
	}
	if b := s.machine.State().BundlesOf(app("3")); len(b) != 1 || len(b[0].Signatures) != 2 {
		t.Errorf("published %+v", b)
	}
	if err := s.tryPublish(t, app("3"), release("3"), "canary", nil); err != nil {
		t.Errorf("publish again, signed as it is: %v", err)
	}

	_, err := s.client.SetChannel(t.Context(), "new", api.ChannelSet{Bundle: app("1")})
	denied(t, "set channel", err, "app@1")
	_, err = s.client.SetChannel(t.Context(), "new", api.ChannelSet{Bundle: app("1"), Options: eboot.ChannelOptions{Control: eboot.ControlOn}})
	denied(t, "set channel with options", err, "app@1")
	_, err = s.client.UndoChannel(t.Context(), eboot.DefaultChannel)
	denied(t, "undo channel", err, "app@2")
	_, err = s.client.StartRollout(t.Context(), eboot.DefaultChannel, api.RolloutStart{
		Bundle: app("1"), RolloutSpec: eboot.RolloutSpec{Stages: []eboot.Stage{{Name: "all", Percent: 100}}, DeadlineMS: 60_000},
	})
	denied(t, "rollout", err, "app@1")
	entry, err := fsm.SetChannel{Header: s.ownHeader(), Channel: "new", Ref: app("1")}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.ApplyEntry(t.Context(), entry) // as from a server that trusts anybody
	denied(t, "entry of another server", err, "app@1")

	// One signer after the other; a signature that does not count could take a good one's place.
	denied(t, "sign by a stranger", s.sign(t, app("1"), eve), "would not count")
	if err := s.sign(t, app("1"), alice); err != nil {
		t.Fatal(err)
	}
	_, err = s.client.SetChannel(t.Context(), "new", api.ChannelSet{Bundle: app("1")})
	denied(t, "set channel with one of two", err, "of 1 trusted keys")
	if err := s.sign(t, app("1"), bob); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.SetChannel(t.Context(), "new", api.ChannelSet{Bundle: app("1")}); err != nil {
		t.Errorf("set channel with two signatures: %v", err)
	}
	b := s.machine.State().BundlesOf(app("2"))[0]
	signatures, err := signs(alice)(b)
	if err != nil {
		t.Fatal(err)
	}
	for what, body := range map[string]api.BundleSignatures{
		"another tree": {ERTS: b.ERTS, Manifest: eboot.DigestOf([]byte("other")), Signatures: signatures},
	} {
		if _, err := s.client.SignBundle(t.Context(), b.Ref(), body); !errors.Is(err, eboot.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.client.SignBundle(t.Context(), app("9"), api.BundleSignatures{ERTS: b.ERTS, Manifest: b.Manifest, Signatures: signatures}); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("no such bundle: %v", err)
	}
}

// What came in before keys were trusted, or through a server that trusts none, is not
// served: not found in discovery, not given to a slave that knows the port, whatever the name that it
// has. A signature changes that at once.
func TestUnsignedIsNotServed(t *testing.T) {
	t.Parallel()
	alice := signer(t)
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	s.boots(t, "127.0.0.1", "1")
	s.stop(t)

	s = start(t, trusting(t, c, 1, alice))
	s.notReady(t, "bundle app@1 for ERTS "+testERTS+": is not signed")
	s.silent(t)
	explained := func() string {
		t.Helper()
		e, err := s.client.Explain(t.Context(), netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(e)
	}
	if text := explained(); !strings.Contains(text, "{signatures failed") || !strings.Contains(text, "eboot bundle sign app@1") {
		t.Errorf("explained: %s", text)
	}
	if err := s.sign(t, app("1"), alice); err != nil {
		t.Fatal(err)
	}
	s.boots(t, "127.0.0.1", "1")
	s.ready(t)
	if text := explained(); !strings.Contains(text, "is signed by key "+alice.Public().ID.String()) {
		t.Errorf("explained: %s", text)
	}

	// The same tree by another name is another bundle.
	s.stop(t)
	s = start(t, c)
	if err := s.tryPublish(t, eboot.Ref{Name: "alias", Version: "1"}, release("1"), eboot.DefaultChannel, nil); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	s = start(t, trusting(t, c, 1, alice))
	s.notReady(t, "bundle alias@1 for ERTS")
	s.silent(t)
	s.stop(t)

	// A key that is trusted no more takes its signatures with it.
	s = start(t, c)
	if _, err := s.client.SetChannel(t.Context(), eboot.DefaultChannel, api.ChannelSet{Bundle: app("1")}); err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	s = start(t, trusting(t, c, 1, signer(t)))
	s.notReady(t, "key "+alice.Public().ID.String()+" is not trusted")
	s.silent(t)
}

// silent wants that no slave is answered, and that one that knows the port gets nothing.
func (s *server) silent(t *testing.T) {
	t.Helper()
	if _, ok := s.discover(t); ok {
		t.Error("discovery was answered")
	}
	var port uint16
	testutil.Poll(t, patience, "the port for files is to be open", func() (ok bool) {
		port, ok = s.listeners.port(testERTS)
		return ok
	})
	for _, name := range []string{"bin/start.boot", "lib/app-1/ebin/m.beam"} {
		dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
		conn, err := dialer.DialContext(t.Context(), "tcp4", fmt.Sprintf("%s:%d", s.config.Boot.Bind[0], port))
		if err != nil {
			t.Fatal(err)
		}
		client := testutil.NewFileClient(t, conn)
		if reply, err := client.Request(testutil.Tuple{testutil.Atom("get"), testutil.Text(testRoot + "/" + name)}); err == nil {
			t.Errorf("get %s: %s", name, testutil.Format(reply))
		}
		client.Close()
	}
}

func TestTrustedKeyFiles(t *testing.T) {
	t.Parallel()
	alice := signer(t)
	bad := filepath.Join(t.TempDir(), "bad.pub")
	secret, err := alice.Encode(rand.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	twice := []string{keyFile(t, alice), keyFile(t, alice)}
	for name, tc := range map[string]struct {
		trust config.Trust
		err   error
		text  string
	}{
		"a secret key": {config.Trust{Keys: []string{bad}, Threshold: 1}, eboot.ErrInvalid, bad},
		"no file":      {config.Trust{Keys: []string{"/nowhere/k.pub"}, Threshold: 1}, os.ErrNotExist, "/nowhere/k.pub"},
		"a key twice":  {config.Trust{Keys: twice, Threshold: 2}, eboot.ErrInvalid, "given twice"},
	} {
		if _, err := openTrust(tc.trust, hclog.NewNullLogger()); !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(bad, []byte("untrusted comment: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := settings(t)
	c.Trust = config.Trust{Keys: []string{bad}, Threshold: 1}
	if a, err := New(Options{Config: c, Logger: hclog.NewNullLogger()}); !errors.Is(err, eboot.ErrInvalid) {
		t.Errorf("a server started: %v, %v", a, err)
	}
}

// Discovery asks for every search: what was found is remembered, as long as it is true.
func TestTrustRemembers(t *testing.T) {
	alice := signer(t)
	trusted, err := openTrust(config.Trust{Keys: []string{keyFile(t, alice)}, Threshold: 1}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	b := eboot.Bundle{Name: "app", Version: "1", ERTS: testERTS, Manifest: eboot.DigestOf([]byte("x")), BootScript: "start.boot"}
	if err := trusted.serves(b); !errors.Is(err, eboot.ErrUnavailable) {
		t.Fatalf("unsigned: %v", err)
	}
	if b.Signatures, err = signs(alice)(b); err != nil {
		t.Fatal(err)
	}
	if err := trusted.serves(b); err != nil {
		t.Errorf("signed: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { err = errors.Join(err, trusted.serves(b)) }); n > 0 || err != nil {
		t.Errorf("%v allocations, %v", n, err)
	}
	b.Signatures = nil
	if err := trusted.serves(b); !errors.Is(err, eboot.ErrUnavailable) {
		t.Errorf("unsigned again: %v", err)
	}
	for i := range 2 * maxJudged {
		b.Version = fmt.Sprint(i)
		_ = trusted.serves(b)
	}
	if len(trusted.judged) > maxJudged {
		t.Errorf("%d are remembered", len(trusted.judged))
	}
}

// In a group the server that leads asks again, a signature counts on every server as soon as it
// is acknowledged, and a server that trusts anybody lets nothing be served by the others.
func TestTrustInAGroup(t *testing.T) {
	t.Parallel()
	alice := signer(t)
	var servers []*server
	var first netip.Addr
	for i := range 3 {
		c := settings(t)
		a := c.Boot.Bind[0]
		c.TLS.Insecure = true
		c.Cluster.Name, c.Cluster.Expect = "test", 3
		c.Peer.Bind, c.Gossip.Bind = netip.AddrPortFrom(a, 14381), netip.AddrPortFrom(a, 14382)
		if i == 0 {
			first = a
		} else {
			c.Gossip.Seeds = []string{netip.AddrPortFrom(first, 14382).String()}
			c = trusting(t, c, 1, alice)
		}
		servers = append(servers, start(t, c))
	}
	careless, careful := servers[0], servers[1:]
	for _, s := range servers {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil
		})
	}
	lead := func(s *server) {
		t.Helper()
		testutil.Poll(t, 30*time.Second, "another server is to lead", func() bool {
			_, err := careless.client.TransferLeadership(t.Context(), s.server)
			return err == nil || s.cluster.Status().Role == roleLeader
		})
	}
	careless.allow(t, "127.0.0.0/8", "")

	lead(careful[0])
	denied(t, "publish where nobody asks", careless.tryPublish(t, app("1"), release("1"), eboot.DefaultChannel, nil), "is not signed")
	if err := careless.tryPublish(t, app("2"), release("2"), "", signs(alice)); err != nil {
		t.Fatalf("publish with a signature: %v", err)
	}
	for i, s := range servers {
		if _, err := s.client.SetChannel(t.Context(), fmt.Sprint("c", i), api.ChannelSet{Bundle: app("2")}); err != nil {
			t.Errorf("set a channel: %v", err)
		}
	}

	lead(careless)
	if err := careless.tryPublish(t, app("1"), release("1"), eboot.DefaultChannel, nil); err != nil {
		t.Fatalf("publish where nobody asks, and nobody who asks leads: %v", err)
	}
	careless.boots(t, "127.0.0.1", "1")
	for _, s := range careful {
		s.notReady(t, "bundle app@1 for ERTS "+testERTS+": is not signed")
		s.silent(t)
	}
	if err := careless.sign(t, app("1"), alice); err != nil {
		t.Fatal(err)
	}
	for _, s := range careful { // whoever was not told yet asks
		if _, err := s.client.SetChannel(t.Context(), "late", api.ChannelSet{Bundle: app("1")}); err != nil {
			t.Errorf("set a channel as soon as it is signed: %v", err)
		}
		s.boots(t, "127.0.0.1", "1")
	}
}
