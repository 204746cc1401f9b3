package agent

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"eboot"
	"eboot/bootproto"
)

// A slave may go on with what its channel pointed to when it booted, and begin with nothing
// but what it points to now.
func TestPointedTo(t *testing.T) {
	s := start(t, settings(t))
	for _, version := range []string{"1", "2", "3"} {
		s.publish(t, version, eboot.DefaultChannel)
	}
	s.publish(t, "4", "other")
	state := s.view.State()
	channel, _ := state.Channel(eboot.DefaultChannel)
	moved := map[string]time.Time{} // when the channel left a version
	for _, move := range channel.History {
		moved[move.From.Version] = move.At
	}
	bundle := func(version string) eboot.Bundle {
		b, ok := state.Bundle(app(version), testERTS)
		if !ok {
			t.Fatalf("app@%s is not there", version)
		}
		return b
	}
	elsewhere := bundle("1")
	elsewhere.ERTS = "99.1"
	for _, c := range []struct {
		what    string
		channel string
		bundle  eboot.Bundle
		at      time.Time
		want    bool
	}{
		{"as it came", "stable", bundle("1"), moved[""], true},
		{"before it came", "stable", bundle("1"), moved[""].Add(-ageSlack - time.Millisecond), false},
		{"as it left", "stable", bundle("1"), moved["1"], true},
		{"by a clock that is behind", "stable", bundle("1"), moved["1"].Add(ageSlack - time.Millisecond), true},
		{"after it left", "stable", bundle("1"), moved["1"].Add(ageSlack), false},
		{"the second, before it left", "stable", bundle("2"), moved["2"].Add(-time.Nanosecond), true},
		{"the second, by a clock that is ahead", "stable", bundle("2"), moved["1"].Add(-ageSlack), true},
		{"the second, before it came", "stable", bundle("2"), moved["1"].Add(-ageSlack - time.Millisecond), false},
		{"the present one is not history", "stable", bundle("3"), moved["2"], false},
		{"never there", "stable", bundle("4"), moved["1"], false},
		{"another channel's", "other", bundle("1"), moved["1"], false},
		{"no channel", "none", bundle("1"), moved["1"], false},
		{"another ERTS", "stable", elsewhere, moved["1"], false},
	} {
		if got := pointedTo(state, c.channel, c.bundle, c.at); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func TestOpen(t *testing.T) {
	s := start(t, settings(t))
	s.publish(t, "1", eboot.DefaultChannel)
	s.allow(t, "127.0.0.0/8", eboot.DefaultChannel)
	one := eboot.DigestOf(release("1").Manifest().Encode())
	s.answered(t, patience)
	connect := func(slave string) *bootSession {
		t.Helper()
		connected, err := s.boot.Connect(netip.AddrPortFrom(netip.MustParseAddr(slave), 4001), testERTS)
		if err != nil {
			t.Fatal(err)
		}
		session := connected.(*bootSession)
		t.Cleanup(func() { session.Close(nil) })
		return session
	}
	open := func(session *bootSession, digest string, age time.Duration) error {
		_, err := session.Open(bootproto.Open{Digest: digest, Bundle: "app@1", Script: "bin/start.boot", Mode: "embedded", Age: age, Boot: 1, Tree: true, Plan: true})
		return err
	}
	booted := connect("127.0.0.1")
	if _, err := booted.Get([]byte("/opt/erlang/bin/start.boot")); err != nil {
		t.Fatal(err)
	}
	other := connect("127.0.0.2")
	if err := open(other, one.String(), 0); err != nil {
		t.Fatalf("the channel's bundle: %v", err)
	}
	if err := open(other, "no digest", 0); !errors.Is(err, bootproto.ErrBadOpen) {
		t.Errorf("no digest: %v", err)
	}
	if err := open(other, eboot.DigestOf([]byte("none")).String(), 0); !errors.Is(err, bootproto.ErrUnavailable) {
		t.Errorf("a bundle that is not there: %v", err)
	}

	s.publish(t, "2", eboot.DefaultChannel)
	two := eboot.DigestOf(release("2").Manifest().Encode())
	if err := open(booted, one.String(), 0); err != nil {
		t.Errorf("the bundle that this connection began with: %v", err)
	}
	content, err := booted.Fetch([]byte("lib/app-1/ebin/m.beam"), false)
	if err != nil || string(content.Data) != "code of 1" {
		t.Errorf("fetched %q, %v", content.Data, err)
	}
	if err := open(connect("127.0.0.2"), one.String(), 24*time.Hour); err != nil {
		t.Errorf("the bundle that this slave ran: %v", err)
	}
	if err := open(connect("127.0.0.3"), one.String(), 10*time.Second); err != nil {
		t.Errorf("the bundle of ten seconds ago: %v", err)
	}
	if err := open(connect("127.0.0.5"), one.String(), 24*time.Hour); !errors.Is(err, bootproto.ErrDenied) {
		t.Errorf("the bundle of ten seconds ago, a day ago: %v", err)
	}
	late := connect("127.0.0.4")
	late.service.now = func() time.Time { return time.Now().Add(2 * ageSlack) }
	if err := open(late, one.String(), 0); !errors.Is(err, bootproto.ErrDenied) {
		t.Errorf("a bundle that the channel has left: %v", err)
	}
	if err := open(late, two.String(), 0); err != nil {
		t.Errorf("the channel's bundle: %v", err)
	}
	s.boot.draining.Store(true)
	if err := open(booted, one.String(), 0); !errors.Is(err, bootproto.ErrUnavailable) {
		t.Errorf("a server that stops: %v", err)
	}
	if p, err := eboot.ParsePrefix("127.0.0.0/8"); err != nil {
		t.Fatal(err)
	} else if _, err := s.client.Deny(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := late.Allowed(); !errors.Is(err, eboot.ErrDenied) {
		t.Errorf("a slave that was denied: %v", err)
	}
}

// What a slave asks for while it boots is sent ahead the next time, and what it asks for
// when it is up is not: it opens a session for that, too.
func TestOnlyBootsAreLearnedFrom(t *testing.T) {
	s := start(t, settings(t))
	s.publish(t, "1", eboot.DefaultChannel)
	s.allow(t, "127.0.0.0/8", eboot.DefaultChannel)
	s.answered(t, patience)
	manifest := eboot.DigestOf(release("1").Manifest().Encode())
	session, _ := s.session(t, "127.0.0.1", manifest)
	defer session.Close(nil)
	now := time.Now()
	session.service.now = func() time.Time { return now }
	learned := func(want ...string) {
		t.Helper()
		if plan := s.fleet.Plan(session.opened.plan); !slices.Equal(plan, want) {
			t.Fatalf("the plan is %q, want %q", plan, want)
		}
	}
	get := func(name string) {
		t.Helper()
		if _, err := session.Get([]byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	learned()
	get("/opt/erlang/lib/app-1/../app-1/ebin/m.beam")
	learned("lib/app-1/ebin/m.beam")
	session.Report(bootproto.Report{Phases: []bootproto.Phase{{Name: "started", At: time.Second}}})
	now = now.Add(learnAfter)
	get("/opt/erlang/sys.config")
	learned("lib/app-1/ebin/m.beam", "sys.config")
	now = now.Add(time.Millisecond)
	again := bootproto.Open{Digest: manifest.String(), Bundle: "app@1", Script: "releases/1/start.boot", Boot: 7, Tree: true}
	if _, err := session.Open(again); err != nil {
		t.Fatal(err)
	}
	get("/opt/erlang/lib/app-1/priv/constant")
	learned("lib/app-1/ebin/m.beam", "sys.config")
	later, err := s.boot.Connect(netip.MustParseAddrPort("127.0.0.1:4002"), testERTS)
	if err != nil {
		t.Fatal(err)
	}
	session = later.(*bootSession)
	defer session.Close(nil)
	if _, err := session.Open(again); err != nil {
		t.Fatal(err)
	}
	get("/opt/erlang/lib/app-1/priv/constant")
	learned("lib/app-1/ebin/m.beam", "sys.config")
}
