package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"eboot"
)

// deed is one command by which somebody changes something.
type deed struct {
	name    string
	kind    kind
	before  []Command // what must have been done; nil: nothing
	command Command   // its header is replaced
	want    []eboot.EventKind
}

// deeds has at least one of each type of command that somebody may be behind.
func deeds() []deed {
	one, two := bundleOf("app", "1", "13.1", "one"), bundleOf("app", "2", "13.1", "two")
	elsewhere := one
	elsewhere.Holders = []string{"server-b"}
	entries := []eboot.WhitelistEntry{entryOf("10.0.0.0/8", "stable", nil)}
	kinds := func(kinds ...eboot.EventKind) []eboot.EventKind { return kinds }
	published := []Command{AddBundle{Bundle: one, Channel: "stable"}, AddBundle{Bundle: two}}
	started := append(published[:2:2], StartRollout{ID: "one", Channel: "stable", Ref: two.Ref(), Spec: specOf("10%", "100%")})
	steer := func(name string, want eboot.EventKind, before []Command, actions ...eboot.RolloutAction) deed {
		for _, a := range actions[:len(actions)-1] {
			before = append(before[:len(before):len(before)], SteerRollout{Channel: "stable", Action: a})
		}
		return deed{name, kindSteerRollout, before, SteerRollout{Channel: "stable", Action: actions[len(actions)-1]}, kinds(want)}
	}
	full := steer("promote in full", eboot.EventRolloutSucceeded, started, eboot.RolloutPromoteFull)
	undo := steer("undo", eboot.EventRolloutUndone, started, eboot.RolloutPromoteFull, eboot.RolloutUndo)
	full.want, undo.want = append(full.want, eboot.EventChannelMoved), append(undo.want, eboot.EventChannelMoved)
	return []deed{
		{"allow", kindAllowSlaves, nil, AllowSlaves{Entries: entries}, kinds(eboot.EventSlavesAllowed)},
		{"deny", kindDenySlaves, []Command{AllowSlaves{Entries: entries}}, DenySlaves{Prefixes: []netip.Prefix{entries[0].Prefix}}, kinds(eboot.EventSlavesDenied)},
		{"publish", kindAddBundle, nil, AddBundle{Bundle: one}, kinds(eboot.EventBundlePublished)},
		{"publish to a channel", kindAddBundle, nil, AddBundle{Bundle: one, Channel: "stable"}, kinds(eboot.EventBundlePublished, eboot.EventChannelMoved)},
		{"publish with signatures", kindAddBundle, nil, AddBundle{Bundle: signedBy(one, 1)}, kinds(eboot.EventBundlePublished, eboot.EventBundleSigned)},
		{"publish again elsewhere", kindAddBundle, published, AddBundle{Bundle: elsewhere}, kinds(eboot.EventBundlePublished)},
		{"publish again with signatures", kindAddBundle, published, AddBundle{Bundle: signedBy(one, 1)}, kinds(eboot.EventBundleSigned)},
		{"publish again to a channel", kindAddBundle, published, AddBundle{Bundle: two, Channel: "stable"}, kinds(eboot.EventChannelMoved)},
		{"remove a bundle", kindRemoveBundle, published, RemoveBundle{Ref: two.Ref()}, kinds(eboot.EventBundleRemoved)},
		{"set a channel", kindSetChannel, published, SetChannel{Channel: "stable", Ref: two.Ref()}, kinds(eboot.EventChannelMoved)},
		{"drain", kindSetDrained, nil, SetDrained{Server: "b", Drained: true}, kinds(eboot.EventServerDrained)},
		{"undrain", kindSetDrained, []Command{SetDrained{Server: "b", Drained: true}}, SetDrained{Server: "b"}, kinds(eboot.EventServerUndrained)},
		{"remove a server", kindRemoveServer, nil, RemoveServer{Server: "b"}, kinds(eboot.EventServerRemoved)},
		{"raise the version", kindRaiseVersion, nil, RaiseVersion{Version: Version}, kinds(eboot.EventVersionRaised)},
		{"configure", kindConfigure, nil, ConfigureChannel{Channel: "stable", Options: eboot.ChannelOptions{Control: eboot.ControlOn}}, kinds(eboot.EventChannelConfigured)},
		{"make a channel", kindConfigure, nil, ConfigureChannel{Channel: "stable", Options: eboot.ChannelOptions{Control: eboot.ControlOff}}, kinds(eboot.EventChannelConfigured)},
		{"start a rollout", kindStartRollout, published, started[2], kinds(eboot.EventRolloutStarted)},
		steer("promote", eboot.EventRolloutAdvanced, started, eboot.RolloutPromote),
		steer("pause", eboot.EventRolloutPaused, started, eboot.RolloutPause),
		steer("resume", eboot.EventRolloutResumed, started, eboot.RolloutPause, eboot.RolloutResume),
		steer("abort", eboot.EventRolloutAborted, started, eboot.RolloutAbort),
		full, undo,
		{"protect", kindProtectBundle, published, ProtectBundle{Ref: one.Ref(), Protected: true}, kinds(eboot.EventBundleProtected)},
		{"unprotect", kindProtectBundle, append(published[:2:2], ProtectBundle{Ref: one.Ref(), Protected: true}), ProtectBundle{Ref: one.Ref()}, kinds(eboot.EventBundleUnprotected)},
		{"undo a channel", kindUndoChannel, published, UndoChannel{Channel: "stable"}, kinds(eboot.EventChannelMoved)},
		{"sign", kindSignBundle, published, SignBundle{Ref: one.Ref(), ERTS: "13.1", Manifest: one.Manifest, Signatures: signaturesOf(1)}, kinds(eboot.EventBundleSigned)},
		{"create a token", kindCreateToken, nil, CreateToken{Token: tokenOf(1, "ci", eboot.RoleAdmin, 0)}, kinds(eboot.EventTokenCreated)},
		{"revoke a token", kindRevokeToken, []Command{CreateToken{Token: tokenOf(1, "ci", eboot.RoleAdmin, 0)}}, RevokeToken{ID: tokenOf(1, "ci", "", 0).ID}, kinds(eboot.EventTokenRevoked)},
		{"revoke a token by its name", kindRevokeToken, []Command{CreateToken{Token: tokenOf(1, "ci", eboot.RoleAdmin, 0)}}, RevokeToken{Name: "ci"}, kinds(eboot.EventTokenRevoked)},
		{"transfer leadership", kindNote, nil, Note{Kind: eboot.EventLeaderTransferred, Text: "server-b leads", Server: "b"}, kinds(eboot.EventLeaderTransferred)},
		{"save a snapshot", kindNote, nil, Note{Kind: eboot.EventSnapshotSaved, Text: "a snapshot was saved"}, kinds(eboot.EventSnapshotSaved)},
	}
}

// withHeader returns a command with another header.
func withHeader(t testing.TB, c Command, h Header) Command {
	t.Helper()
	read, err := kinds[c.kind()].read(h, mustEncodeChange(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// What somebody changes says who it was, from where, when, by which request and which
// generation came of it; the table has a row for each type of command.
func TestEveryDeedIsAudited(t *testing.T) {
	rows := map[kind]bool{}
	for _, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			if rows[d.kind] = true; d.command.kind() != d.kind {
				t.Fatalf("is of type %s", d.command.kind())
			}
			l := newLog(t)
			version := Version
			if d.command.kind() == kindRaiseVersion {
				version = operatorsVersion
			}
			l.must(RaiseVersion{Header: l.header(), Version: version})
			for _, c := range d.before {
				l.must(withHeader(t, c, l.by()))
			}
			h := l.by()
			c := withHeader(t, d.command, h)
			if v := MinimumVersion(c); v < operatorsVersion {
				t.Errorf("needs version %d only", v)
			}
			before := l.machine.State()
			if r := l.must(c); !r.Changed {
				t.Fatalf("%+v", r)
			}
			s := l.machine.State()
			told := s.EventsAfter(before.Index())
			if fmt.Sprint(kindsOf(told)) != fmt.Sprint(d.want) {
				t.Fatalf("events %v, want %v", kindsOf(told), d.want)
			}
			for _, e := range told {
				if e.By != operator || e.Request != h.RequestID || !e.At.Equal(h.time()) || e.Generation != s.Generation() || e.Text == "" {
					t.Errorf("%+v", e)
				}
			}
			// The same again is no deed: it leaves no second trace.
			l.applyEntry(mustEncode(t, c))
			if n := len(l.machine.State().Events()); n != len(s.Events()) {
				t.Errorf("%d events after the same request, before %d", n, len(s.Events()))
			}
		})
	}
	for k := range 256 {
		switch k := kind(k); {
		case !k.known():
		case k.own() == rows[k]:
			t.Errorf("%s: comes from servers only: %v; has a row: %v", k, k.own(), rows[k])
		}
	}
}

// What servers propose of their own accord may leave no event, so nobody can be behind it.
func TestOwnCommandsHaveNoActor(t *testing.T) {
	for _, c := range example() {
		if !c.command.kind().own() {
			continue
		}
		by := withHeader(t, c.command, Header{RequestID: "x", By: operator})
		if _, err := by.Encode(); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), "alice") {
			t.Errorf("%s: %v", c.name, err)
		}
		entry := mustEncode(t, withHeader(t, c.command, Header{RequestID: "x"}))
		entry = bytes.Replace(entry, []byte(`"change"`), []byte(`"by":{"name":"alice","via":"token"},"change"`), 1)
		l := newLog(t)
		if r := l.applyEntry(entry); !errors.Is(r.Err, eboot.ErrInvalid) || r.Changed {
			t.Errorf("%s from outside: %+v", c.name, r)
		}
	}
}

func TestActorTravels(t *testing.T) {
	h := Header{RequestID: "a", At: 5, By: operator}
	c := SetDrained{Header: h, Server: "b", Drained: true}
	entry := mustEncode(t, c)
	read, err := CheckEntry(entry)
	if err != nil || read != c {
		t.Fatalf("%+v, %v", read, err)
	}
	c.Header = h.For(securityVersion)
	if c.By != (eboot.Actor{}) || c.RequestID != "a" || c.At != 5 || MinimumVersion(c) != firstVersion || bytes.Contains(mustEncode(t, c), []byte(`"by"`)) {
		t.Errorf("for an older cluster: %+v", c)
	}
	if h.For(VersionActors) != h || h.For(Version+1) != h {
		t.Error("dropped for a cluster that knows actors")
	}
	// Who asked is not part of what is asked.
	_, with, _ := decode(entry)
	if _, without, _ := decode(mustEncode(t, c)); with != without {
		t.Error("the fingerprint depends on the actor")
	}
	for name, by := range map[string]eboot.Actor{"no way": {Name: "x"}, "two lines": {Name: "a\nb", Via: eboot.ViaToken}, "long": {Via: eboot.ViaToken, From: strings.Repeat("x", 200)}} {
		c.By = by
		if _, err := c.Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A program of the version before would halt at any "by": one that says nothing must not
// pass for none.
func TestNobodyIsNoActor(t *testing.T) {
	for _, by := range []string{`null`, `{}`, `{"name":""}`, `""`, `[]`, `{"name":"x","via":"token","later":1}`} {
		entry := fmt.Sprintf("\x08\x01"+`{"request_id":"a","at_ms":1,"by":%s,"change":{"server":"b","drained":true}}`, by)
		if c, err := CheckEntry([]byte(entry)); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s is read: %+v, %v", by, c, err)
		}
	}
	// Readable, and wrong: refused, the same on every server.
	l := newLog(t)
	entry := "\x08\x01" + `{"request_id":"a","at_ms":1,"by":{"name":"x","via":"magic"},"change":{"server":"b","drained":true}}`
	if r := l.applyEntry([]byte(entry)); !errors.Is(r.Err, eboot.ErrInvalid) || r.Changed || l.machine.State().Drained("b") {
		t.Errorf("%+v", r)
	}
}

func TestNote(t *testing.T) {
	good := Note{Header: Header{RequestID: "a", By: operator}, Kind: eboot.EventSnapshotSaved, Text: strings.Repeat("x", maxNote)}
	if _, err := good.Encode(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Note){
		"by nobody":      func(c *Note) { c.By = eboot.Actor{} },
		"no kind":        func(c *Note) { c.Kind = "" },
		"another kind":   func(c *Note) { c.Kind = eboot.EventTokenRevoked },
		"no text":        func(c *Note) { c.Text = "" },
		"long":           func(c *Note) { c.Text += "x" },
		"two lines":      func(c *Note) { c.Text = "a\nb" },
		"not ASCII":      func(c *Note) { c.Text = "a\u202eb" },
		"no server name": func(c *Note) { c.Server = "no name" },
	} {
		c := good
		spoil(&c)
		if _, err := c.Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := newLog(t)
	l.must(RaiseVersion{Header: l.header(), Version: Version})
	before := l.machine.State()
	good.Header = l.by()
	r := l.must(good)
	if s := l.machine.State(); r.Generation != before.Generation() || len(s.Events()) != len(before.Events())+1 {
		t.Errorf("%+v, %d events", r, len(s.Events()))
	}
}
