package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"eboot"
)

func TestGolden(t *testing.T) {
	l := newLog(t)
	for _, c := range example() {
		golden(t, c.name+".command", mustEncode(t, c.command))
		entry, err := os.ReadFile(filepath.Join("testdata", c.name+".command"))
		if err != nil {
			t.Fatal(err)
		}
		if r := l.applyEntry(entry); r.Err != nil || !r.Changed {
			t.Fatalf("%s: %+v", c.name, r)
		}
		if name, ok := snapshotsAfter[c.name]; ok {
			golden(t, name, snapshotOf(t, l.machine.State()))
			if again := reread(t, l.machine.State()); again.Digest() != l.machine.State().Digest() {
				t.Errorf("%s has another digest when it was read", name)
			}
		}
	}
}

// Every type has an example, and may be proposed in a cluster that all programs know.
func TestKinds(t *testing.T) {
	seen := map[kind]bool{}
	for _, c := range example() {
		k := c.command.kind()
		seen[k] = true
		if v := MinimumVersion(c.command); v < firstVersion || v > Version {
			t.Errorf("%s needs cluster version %d, this program knows %d", k, v, Version)
		}
	}
	for k := range 256 {
		if k := kind(k); k.known() != seen[k] || k.known() == strings.HasPrefix(k.String(), "type ") {
			t.Errorf("%s: known %v, has an example %v", k, k.known(), seen[k])
		}
	}
}

func TestInitCountsOnce(t *testing.T) {
	l := newLog(t)
	if r := l.must(Init{Header: l.header(), ClusterID: "first", Name: "prod"}); !r.Changed || r.Generation != 0 {
		t.Fatalf("first: %+v", r)
	}
	if r := l.must(Init{Header: l.header(), ClusterID: "second"}); r.Changed {
		t.Fatalf("second: %+v", r)
	}
	if s := l.machine.State(); s.Cluster() != "first" || s.Name() != "prod" {
		t.Fatalf("cluster %q name %q", s.Cluster(), s.Name())
	}
}

func TestWhitelist(t *testing.T) {
	l := newLog(t)
	wide, narrow := entryOf("10.0.0.0/8", "stable", nil), entryOf("10.1.0.0/16", "canary", map[string]string{"rack": "r1"})
	if r := l.must(AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{narrow, wide, narrow}}); !r.Changed || r.Generation != 1 {
		t.Fatalf("allow: %+v", r)
	}
	before := l.machine.State()
	for address, want := range map[string]string{"10.1.2.3": "canary", "10.2.0.1": "stable", "::ffff:10.1.2.3": "canary", "11.0.0.1": ""} {
		e, ok := before.Lookup(netip.MustParseAddr(address))
		if ok != (want != "") || ok && e.Channel != want {
			t.Errorf("lookup %s: %v %v, want %q", address, e, ok, want)
		}
	}
	if r := l.must(AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{wide}}); r.Changed || r.Generation != 1 {
		t.Fatalf("allow again: %+v", r)
	}
	if r := l.apply(AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{wide, entryOf("10.0.0.0/8", "canary", nil)}}); !errors.Is(r.Err, eboot.ErrInvalid) {
		t.Fatalf("twice with different content: %+v", r)
	}
	both := []netip.Prefix{wide.Prefix, netip.MustParsePrefix("10.3.0.0/16")}
	if r := l.apply(DenySlaves{Header: l.header(), Prefixes: both}); !errors.Is(r.Err, eboot.ErrNotFound) || !strings.Contains(r.Err.Error(), "10.3.0.0/16") {
		t.Fatalf("deny of an unknown prefix: %+v", r)
	}
	if _, ok := l.machine.State().Entry(wide.Prefix); !ok {
		t.Fatal("a refused deny removed an entry")
	}
	if r := l.must(DenySlaves{Header: l.header(), Prefixes: []netip.Prefix{wide.Prefix, wide.Prefix}}); r.Generation != 2 {
		t.Fatalf("deny: %+v", r)
	}
	if n := l.machine.State().WhitelistSize(); n != 1 || before.WhitelistSize() != 2 {
		t.Fatalf("%d entries now and %d in the older state", n, before.WhitelistSize())
	}
	if _, ok := before.Entry(wide.Prefix); !ok {
		t.Fatal("the older state changed")
	}
}

func TestBundlesAndChannels(t *testing.T) {
	l := newLog(t)
	one, two := bundleOf("otp", "1", "13.1", "one"), bundleOf("otp", "1", "14.0", "two")
	if r := l.must(AddBundle{Header: l.header(), Bundle: one}); !r.Changed || r.Generation != 0 {
		t.Fatalf("publish without a channel: %+v", r)
	}
	if r := l.must(AddBundle{Header: l.header(), Bundle: two, Channel: "stable"}); r.Generation != 1 {
		t.Fatalf("publish with a channel: %+v", r)
	}
	if r := l.must(AddBundle{Header: l.header(), Bundle: two, Channel: "stable"}); r.Changed || r.Generation != 1 {
		t.Fatalf("publish again: %+v", r)
	}
	other := one
	other.Manifest = eboot.DigestOf([]byte("other"))
	if r := l.apply(AddBundle{Header: l.header(), Bundle: other}); !errors.Is(r.Err, eboot.ErrConflict) {
		t.Fatalf("other content: %+v", r)
	}
	other = one
	other.BootScript = "bin/other.boot"
	if r := l.apply(AddBundle{Header: l.header(), Bundle: other}); !errors.Is(r.Err, eboot.ErrConflict) {
		t.Fatalf("other boot script: %+v", r)
	}
	elsewhere := one
	elsewhere.Holders, elsewhere.Times = []string{"server-b", "server-a"}, eboot.DigestOf([]byte("touched"))
	if r := l.must(AddBundle{Header: l.header(), Bundle: elsewhere}); !r.Changed || r.Generation != 1 {
		t.Fatalf("another holder: %+v", r)
	}
	kept, _ := l.machine.State().Bundle(one.Ref(), "13.1")
	if !reflect.DeepEqual(kept.Holders, []string{"server-a", "server-b"}) || kept.Times != one.Times || !kept.PublishedAt.Equal(time.UnixMilli(1_700_000_001_000)) {
		t.Fatalf("kept %+v", kept)
	}
	if r := l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("otp@1")}); r.Generation != 2 {
		t.Fatalf("set for every ERTS version: %+v", r)
	}
	for erts, want := range map[string]eboot.Digest{"13.1": one.Manifest, "14.0": two.Manifest} {
		if b, ok := l.machine.State().ChannelBundle("stable", erts); !ok || b.Manifest != want {
			t.Errorf("channel for ERTS %s: %v %v", erts, b, ok)
		}
	}
	if r := l.apply(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("otp@1"), ERTS: "15.0"}); !errors.Is(r.Err, eboot.ErrNotFound) {
		t.Fatalf("set to a missing ERTS version: %+v", r)
	}
	if r := l.apply(RemoveBundle{Header: l.header(), Ref: refOf("otp@1")}); !errors.Is(r.Err, eboot.ErrConflict) || !strings.Contains(r.Err.Error(), "stable") {
		t.Fatalf("remove in use: %+v", r)
	}
	if r := l.apply(RemoveBundle{Header: l.header(), Ref: refOf("otp@2")}); !errors.Is(r.Err, eboot.ErrNotFound) {
		t.Fatalf("remove of nothing: %+v", r)
	}
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "2", "13.1", "three"), Channel: "stable"})
	if r := l.must(RemoveBundle{Header: l.header(), Ref: refOf("otp@1"), ERTS: "13.1"}); r.Generation != 3 {
		t.Fatalf("remove: %+v", r)
	}
	if got := l.machine.State().BundlesOf(refOf("otp@1")); len(got) != 1 || got[0].ERTS != "14.0" {
		t.Fatalf("left: %v", got)
	}
	// The same tree under a name that comes earlier: it answers for itself alone.
	alias := bundleOf("aaa", "1", "14.0", "two")
	alias.BootScript = "releases/1/other.boot"
	l.must(AddBundle{Header: l.header(), Bundle: alias})
	if b, ok := l.machine.State().BundleByManifest(two.Manifest, "14.0"); !ok || alias.Manifest != two.Manifest || b.Ref() != two.Ref() {
		t.Fatalf("by manifest: %v %v", b, ok)
	}
}

func TestChannelHistoryIsBounded(t *testing.T) {
	l := newLog(t)
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "1", "13.1", "one")})
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "2", "13.1", "two")})
	var older eboot.Channel
	for i := range 3 * eboot.ChannelHistoryLength {
		l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf(fmt.Sprintf("otp@%d", 1+i%2))})
		if i == eboot.ChannelHistoryLength {
			older, _ = l.machine.State().Channel("stable")
		}
	}
	c, _ := l.machine.State().Channel("stable")
	if n := len(c.History); n != eboot.ChannelHistoryLength {
		t.Fatalf("%d moves", n)
	}
	if first := c.History[0].Generation; first != 2*eboot.ChannelHistoryLength+1 || older.History[0].Generation != 2 {
		t.Fatalf("oldest move %d, in the older state %d", first, older.History[0].Generation)
	}
	if newest := c.History[len(c.History)-1]; newest.Generation != l.machine.State().Generation() || newest.From != refOf("otp@1") || newest.To != refOf("otp@2") {
		t.Fatalf("newest move %+v", newest)
	}
}

func TestExpectGeneration(t *testing.T) {
	l := newLog(t)
	l.must(AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entryOf("10.0.0.0/8", "stable", nil)}})
	for _, expect := range []uint64{0, 1} {
		h := l.header()
		h.ExpectGeneration = &expect
		r := l.apply(AllowSlaves{Header: h, Entries: []eboot.WhitelistEntry{entryOf("11.0.0.0/8", "stable", nil)}})
		if expect == 1 {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			continue
		}
		if !errors.Is(r.Err, eboot.ErrConflict) || !strings.Contains(r.Err.Error(), "is 1, not 0") {
			t.Fatalf("%+v", r)
		}
	}
}

func TestRequestIsAnsweredAgain(t *testing.T) {
	l := newLog(t)
	allow := AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{entryOf("10.0.0.0/8", "stable", nil)}}
	deny := DenySlaves{Header: l.header(), Prefixes: []netip.Prefix{netip.MustParsePrefix("11.0.0.0/8")}}
	allowed, refused := l.must(allow), l.apply(deny)
	l.must(DenySlaves{Header: l.header(), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})

	check := func(m *Machine, index uint64) {
		t.Helper()
		allow.At += 5000 // a repeated request has a later time
		again := m.Apply(index, mustEncode(t, allow)).(*Result)
		if !again.Replayed || again.Changed != allowed.Changed || again.Generation != allowed.Generation || again.Index != allowed.Index || again.Err != nil {
			t.Fatalf("%+v, first %+v", again, allowed)
		}
		again = m.Apply(index+1, mustEncode(t, deny)).(*Result)
		if !again.Replayed || again.Err == nil || again.Err.Error() != refused.Err.Error() || !errors.Is(again.Err, eboot.ErrNotFound) {
			t.Fatalf("%+v, first %+v", again, refused)
		}
		other := allow
		other.Entries = []eboot.WhitelistEntry{entryOf("12.0.0.0/8", "stable", nil)}
		if r := m.Apply(index+2, mustEncode(t, other)).(*Result); !errors.Is(r.Err, eboot.ErrConflict) || r.Replayed {
			t.Fatalf("other change under the same id: %+v", r)
		}
		if n := m.State().WhitelistSize(); n != 0 {
			t.Fatalf("%d entries: a repeated request took effect again", n)
		}
	}
	restored := New(reread(t, l.machine.State()))
	check(l.machine, l.index+1)
	check(restored, l.index+1)
}

func TestOldRequestsAreForgotten(t *testing.T) {
	l := newLog(t)
	c := SetChannel{Channel: "stable", Ref: refOf("no@1")}
	for range rememberedRequests + 10 {
		c.Header = l.header()
		l.apply(c)
	}
	if n := len(l.machine.State().answers); n != rememberedRequests || len(l.machine.requests) != n {
		t.Fatalf("%d answers, %d ids", n, len(l.machine.requests))
	}
	for serial, known := range map[int]bool{10: false, 11: true, rememberedRequests + 10: true} {
		if _, ok := l.machine.requests[fmt.Sprintf("request-%d", serial)]; ok != known {
			t.Errorf("request %d known: %v", serial, ok)
		}
	}
}

// Machines that begin with the same state append to the same array of answers.
func TestMachinesOfOneStateAreApart(t *testing.T) {
	l := newLog(t)
	for range 5 {
		l.apply(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("no@1")})
	}
	a, b := New(l.machine.State()), New(l.machine.State())
	entry := func(id string) []byte {
		return mustEncode(t, SetChannel{Header: Header{RequestID: id}, Channel: "stable", Ref: refOf("no@1")})
	}
	a.Apply(6, entry("of-a"))
	b.Apply(6, entry("of-b"))
	l.machine.Apply(6, entry("of-l"))
	for m, want := range map[*Machine]string{a: "of-a", b: "of-b", l.machine: "of-l"} {
		if got := last(m.State().answers).Request; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestUnreadableEntryHalts(t *testing.T) {
	good := string(mustEncode(t, example()[0].command))
	for name, entry := range map[string]string{
		"empty": "", "no body": "\x01\x01", "unknown type": "\x63" + good[1:], "type zero": "\x00" + good[1:], "unknown version": good[:1] + "\x02" + good[2:],
		"cut off": good[:len(good)-1], "more after it": good + "{}", "unknown field": good[:2] + `{"request_id":"a","at_ms":1,"change":{"cluster_id":"x","later":1}}`,
		"unknown header field": good[:2] + `{"request_id":"a","at_ms":1,"later":1,"change":{"cluster_id":"x"}}`,
		"wrong shape":          "\x02\x01" + `{"request_id":"a","at_ms":1,"change":{"entries":[{"prefix":"10.0.0.0/99","channel":"x"}]}}`,
		"no change":            good[:2] + `{"request_id":"a","at_ms":1}`,
		// Every command that follows may mean something else.
		"later cluster version": "\x0a\x01" + fmt.Sprintf(`{"request_id":"a","at_ms":1,"change":{"version":%d}}`, Version+1),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			l.must(Init{Header: l.header(), ClusterID: "c"})
			before := l.machine.State()
			defer func() {
				halt, ok := recover().(*HaltError)
				if !ok || halt.Index != 2 || !strings.Contains(halt.Error(), "log entry 2") {
					t.Fatalf("recovered %v", halt)
				}
				if l.machine.State() != before {
					t.Fatal("the state changed")
				}
			}()
			l.applyEntry([]byte(entry))
		})
	}
}

// What is readable but breaks a rule is refused, the same on every server.
func TestBrokenRulesAreRefused(t *testing.T) {
	for _, entry := range []string{
		"\x02\x01" + `{"request_id":"a","at_ms":1,"change":{"entries":[{"prefix":"10.0.0.1/8","channel":"stable"}]}}`,
		"\x02\x01" + `{"request_id":"a","at_ms":1,"change":{"entries":[{"prefix":"::/0","channel":"stable"}]}}`,
		"\x02\x01" + `{"request_id":"a","at_ms":1,"change":{"entries":null}}`,
		"\x01\x01" + `{"request_id":"","at_ms":1,"change":{"cluster_id":"x"}}`,
		"\x01\x01" + `{"request_id":"a","at_ms":300000000000000,"change":{"cluster_id":"x"}}`,
	} {
		l := newLog(t)
		if r := l.applyEntry([]byte(entry)); !errors.Is(r.Err, eboot.ErrInvalid) || r.Changed {
			t.Errorf("%q: %+v", entry, r)
		}
		reread(t, l.machine.State())
	}
}

func TestEncodeRefuses(t *testing.T) {
	ok := Header{RequestID: "a"}
	big := AllowSlaves{Header: ok}
	for i := range 20_000 {
		big.Entries = append(big.Entries, eboot.WhitelistEntry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Channel: "stable"})
	}
	if _, err := big.Encode(); !errors.Is(err, eboot.ErrTooLarge) || !strings.Contains(err.Error(), "split") {
		t.Errorf("too large: %v", err)
	}
	big.Entries = big.Entries[:5_000]
	if _, err := big.Encode(); err != nil {
		t.Errorf("5000 entries: %v", err)
	}
	for _, c := range []Command{
		Init{Header: ok}, AllowSlaves{Header: ok}, DenySlaves{Header: ok}, AddBundle{Header: ok}, RemoveBundle{Header: ok}, SetChannel{Header: ok},
		HoldBundle{Header: ok}, HoldBundle{Header: ok, Server: "a"}, HoldBundle{Header: ok, Server: "a", Manifests: make([]eboot.Digest, 1)},
		SetDrained{Header: ok}, SetDrained{Header: ok, Server: "no name", Drained: true}, RemoveServer{Header: ok}, RaiseVersion{Header: ok},
		RaiseVersion{Header: ok, Version: Version + 1},
		ConfigureChannel{Header: ok, Channel: "stable"}, ConfigureChannel{Header: ok, Options: eboot.ChannelOptions{Loader: "stock"}},
		ConfigureChannel{Header: ok, Channel: "stable", Options: eboot.ChannelOptions{Loader: "other"}},
		ConfigureChannel{Header: ok, Channel: "stable", Options: eboot.ChannelOptions{Control: "yes"}},
		ConfigureChannel{Header: ok, Channel: "stable", Options: eboot.ChannelOptions{Control: "on"}, ERTS: "13.1"},
		Init{ClusterID: "x"}, Init{Header: Header{RequestID: "a b"}, ClusterID: "x"}, Init{Header: Header{RequestID: "a", At: -1}, ClusterID: "x"},
	} {
		if _, err := c.Encode(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestChanged(t *testing.T) {
	l := newLog(t)
	changed := l.machine.Changed()
	select {
	case <-changed:
		t.Fatal("closed before any change")
	default:
	}
	l.must(Init{Header: l.header(), ClusterID: "c"})
	select {
	case <-changed:
	default:
		t.Fatal("not closed by a change")
	}
}
