package gossip

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
)

func TestThreeFindEachOther(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	c := start(t, "c", "127.0.0.3:0", seeds(a), func(o *Options) { o.Meta.Expect, o.Meta.Draining = 5, true })
	a.seesAlive(t, "b", "c")
	b.seesAlive(t, "a", "c")
	c.seesAlive(t, "a", "b")

	got := a.member("c")
	want := Meta{ID: "c", Peer: "127.0.0.1:4381", Version: "1.2.3", Wire: 1, Expect: 5, StateVersion: 1, Draining: true, Boot: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	if !equalMeta(got.Meta, want) || got.Address != c.Address() || got.Left || time.Since(got.Since) > patience {
		t.Errorf("a sees %+v, want %+v at %v", got, want, c.Address())
	}

	c.Update(func(m *Meta) { m.Draining, m.StateVersion, m.ID = false, 7, "mallory" })
	for _, n := range []*node{a, b} {
		n.sees(t, "the update", func([]Member) bool { c := n.member("c"); return c.StateVersion == 7 && !c.Draining })
	}
	c.Update(func(m *Meta) { m.Peer = "nowhere" })
	if lines := c.log.lines("stays as it was", "nowhere"); len(lines) != 1 {
		t.Errorf("an update that cannot be told: %q", lines)
	}
	poll(t, "good health", func() bool { return a.HealthScore() == 0 })
}

func TestDeathAndReturn(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	a.seesAlive(t, "b")
	address := b.Address().String()
	b.stop() // without goodbye
	a.sees(t, "death of b", func([]Member) bool { b := a.member("b"); return !b.Alive && !b.Left && b.ID == "b" })
	if len(a.log.lines("server is gone", "id=b")) != 1 {
		t.Error("the death was not logged once")
	}

	// The same id at the same address, which knows nobody: a finds it.
	b = start(t, "b", address)
	a.seesAlive(t, "b")
	b.seesAlive(t, "a")
}

func TestLeave(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	c := start(t, "c", "127.0.0.3:0", seeds(a))
	a.seesAlive(t, "b", "c")
	b.seesAlive(t, "a", "c")
	c.seesAlive(t, "a", "b")
	begin := time.Now()
	if err := b.Leave(2 * time.Second); err != nil {
		t.Error(err)
	}
	t.Logf("leaving took %v", time.Since(begin))
	for _, n := range []*node{a, c} {
		n.sees(t, "b to be gone", func([]Member) bool { return !n.member("b").Alive })
	}
	// Now and then one of them is told by a packet that b is dead before it has read,
	// from a stream, that b said goodbye. Both at once would be another matter.
	if !a.member("b").Left && !c.member("b").Left {
		t.Error("nobody has heard that b said goodbye")
	}
	if err := b.Leave(time.Second); err != nil {
		t.Error("again:", err)
	}
	b.Update(func(m *Meta) { m.Draining = true }) // tells nobody, harms nobody
	b.stop()
	if err := b.Leave(time.Second); err != nil {
		t.Error("after Close:", err)
	}
	b.Update(func(m *Meta) { m.Draining = false })

	// At another address it is taken back at once: it had left.
	b = start(t, "b", "127.0.0.4:0", seeds(c))
	a.sees(t, "b at its new address", func([]Member) bool { m := a.member("b"); return m.Alive && !m.Left && m.Address == b.Address() })
}

func TestLeaveAlone(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	begin := time.Now()
	if err := a.Leave(0); err != nil || time.Since(begin) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// Two halves that were apart until both had forgotten the other find each other when
// the network is whole again, without seeds.
func TestPartitionLongerThanMemory(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", func(o *Options) { o.Rejoin = func() []string { return []string{a.Address().String()} } })
	c := start(t, "c", "127.0.0.3:0", seeds(a))
	a.seesAlive(t, "b", "c")
	c.seesAlive(t, "a", "b")
	cut([]*node{a, b}, []*node{c})
	for _, n := range []*node{a, b} {
		n.sees(t, "c to be gone", func([]Member) bool { c := n.member("c"); return !c.Alive && c.ID == "c" })
	}
	c.seesAlive(t)
	poll(t, "memberlist to forget the other side", func() bool {
		// With Options.Local it gossips to the dead for a second, and forgets them
		// when it has probed everybody once more.
		for n, ids := range map[*node][]string{a: {"c"}, b: {"c"}, c: {"a", "b"}} {
			for _, id := range ids {
				if time.Since(n.member(id).Since) < 2*time.Second {
					return false
				}
			}
		}
		return true
	})
	heal(a, b, c)
	begin := time.Now()
	a.seesAlive(t, "b", "c")
	b.seesAlive(t, "a", "c")
	c.seesAlive(t, "a", "b")
	t.Logf("together again after %v", time.Since(begin))
}

// A server that was killed and starts at another address while others still believe
// it alive at the old one.
func TestAddressChange(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	c := start(t, "c", "127.0.0.3:0", seeds(a))
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	a.seesAlive(t, "b", "c")
	c.seesAlive(t, "a", "b")
	b.stop()
	begin := time.Now()
	b = start(t, "b", "127.0.0.4:0", seeds(a)) // c is told by others
	for _, n := range []*node{a, c} {
		n.sees(t, "b at its new address", func([]Member) bool { m := n.member("b"); return m.Alive && m.Address == b.Address() })
	}
	b.seesAlive(t, "a", "c")
	t.Logf("found at its new address after %v", time.Since(begin))
	for _, n := range []*node{a, b, c} {
		if err := n.Problem(); err != nil {
			t.Errorf("%s: %v", n.id, err)
		}
	}
}

func TestTwoProcessesWithOneID(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	a.seesAlive(t, "b")
	twin := start(t, "b", "127.0.0.4:0", seeds(a))
	for _, n := range []*node{a, twin} {
		poll(t, n.Address().String()+" to say so", func() bool { return n.Problem() != nil })
		err := n.Problem()
		if !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), b.Address().String()) || !strings.Contains(err.Error(), twin.Address().String()) {
			t.Errorf("%s: %v", n.Address(), err)
		}
		if lines := n.log.lines("two processes have the same server id"); len(lines) != 1 {
			t.Errorf("%s: %d lines", n.Address(), len(lines))
		}
	}
	if m := a.member("b"); !m.Alive || m.Address != b.Address() {
		t.Errorf("a took the twin for b: %+v", m)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	key, other := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("o", 32))
	for _, tc := range []struct {
		name   string
		change func(*Options)
		said   string // by the one who was asked
	}{
		{"OtherCluster", func(o *Options) { o.Cluster = "test"; o.Keys = [][]byte{key} }, "unacceptable label"},
		{"OtherKey", func(o *Options) { o.Keys = [][]byte{other} }, "no installed keys could decrypt"},
		{"NoKey", func(*Options) {}, "not encrypted"},
		{"OtherWire", func(o *Options) { o.Keys = [][]byte{key}; o.Meta.Wire = 2 }, "speaks version 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := start(t, "a", "127.0.0.1:0", func(o *Options) { o.Keys = [][]byte{key} })
			friend := start(t, "b", "127.0.0.2:0", seeds(a), func(o *Options) { o.Keys = [][]byte{key} })
			stranger := start(t, "x", "127.0.0.9:0", seeds(a), tc.change)
			poll(t, "the stranger to be told", func() bool { return len(stranger.log.lines("does not let this server in")) > 0 })
			friend.seesAlive(t, "a")
			// Some more attempts: the log stays quiet.
			joins := 0
			poll(t, "twenty more attempts", func() bool {
				_ = stranger.join(t.Context(), a.Address())
				joins++
				return joins > 20
			})
			a.seesAlive(t, "b")
			stranger.seesAlive(t)
			poll(t, "the one asked to say so", func() bool { return len(a.log.lines(tc.said)) > 0 })
			if lines := a.log.lines(tc.said); len(lines) > 2 { // of the packet and of the stream
				t.Errorf("%d lines: %q", len(lines), lines)
			}
			if lines := stranger.log.lines("does not let this server in"); len(lines) != 1 {
				t.Errorf("the stranger has %d lines", len(lines))
			}
		})
	}
}

func TestPeersFileOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	keep := func(name string) func(*Options) {
		return func(o *Options) { o.PeersFile = filepath.Join(dir, name) }
	}
	a := start(t, "a", "127.0.0.1:0", keep("a"))
	b := start(t, "b", "127.0.0.2:0", keep("b"), seeds(a))
	c := start(t, "c", "127.0.0.3:0", keep("c"), seeds(a))
	nodes := []*node{a, b, c}
	a.seesAlive(t, "b", "c")
	b.seesAlive(t, "a", "c")
	c.seesAlive(t, "a", "b")
	for _, n := range nodes { // the whole site is stopped with care
		if err := n.Leave(time.Second); err != nil {
			t.Log(err)
		}
	}
	for _, n := range nodes {
		n.stop()
		if peers, err := readPeers(filepath.Join(dir, n.id)); err != nil || len(peers) != 2 {
			t.Errorf("%s keeps %v, %v", n.id, peers, err)
		}
	}
	// It starts again without seeds.
	a = start(t, "a", a.Address().String(), keep("a"))
	b = start(t, "b", b.Address().String(), keep("b"))
	c = start(t, "c", c.Address().String(), keep("c"))
	a.seesAlive(t, "b", "c")
	b.seesAlive(t, "a", "c")
	c.seesAlive(t, "a", "b")
}

func TestPeersFileThatCannotBeUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, "a", "127.0.0.1:0", func(o *Options) { o.PeersFile = path })
	b := start(t, "b", "127.0.0.2:0", seeds(a), func(o *Options) { o.PeersFile = "/nowhere/at/all" })
	a.seesAlive(t, "b")
	poll(t, "a good file", func() bool { peers, err := readPeers(path); return err == nil && len(peers) == 1 })
	if len(a.log.lines("cannot be used")) != 1 {
		t.Error("the damaged file was not mentioned once")
	}
	b.stop()
	if n := len(b.log.lines("cannot be kept")); n != 1 {
		t.Errorf("a file that cannot be written was mentioned %d times", n)
	}
}

// Seeds may be names, several addresses, this server itself, or wrong.
func TestSeeds(t *testing.T) {
	a := start(t, "a", "0.0.0.0:0", func(o *Options) { o.Advertise = "127.0.0.1" })
	b := start(t, "b", "127.0.0.2:0", func(o *Options) {
		_, port, _ := strings.Cut(a.Address().String(), ":")
		o.Seeds = []string{"no.such.name.invalid:4382", "[::1]:1", "127.0.0.2", "localhost:" + port, "localhost:" + port}
	})
	a.seesAlive(t, "b")
	b.seesAlive(t, "a")
	if a.Address().Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("advertises %v", a.Address())
	}
	here := a.reachable(nil)
	for target, own := range map[string]bool{
		netip.AddrPortFrom(netip.MustParseAddr("127.0.1.1"), a.bound.Port()).String(): true,
		a.Address().String(): true, b.Address().String(): false, "192.0.2.1:1": false,
	} {
		if got := here.has(netip.MustParseAddrPort(target)); got != own {
			t.Errorf("%s is this server: %v", target, got)
		}
	}
	poll(t, "bad seeds to be mentioned", func() bool { return len(b.log.lines("cannot be reached")) == 3 })
}

// Without an address to advertise one is found, or the error says what to set.
func TestAddressIsFound(t *testing.T) {
	g, err := Open(Options{Cluster: "prod", Bind: netip.MustParseAddrPort("0.0.0.0:0"), Meta: Meta{ID: "a", Peer: "a:1"}, Local: true})
	if err != nil {
		if !strings.Contains(err.Error(), "gossip.advertise") {
			t.Error(err)
		}
		return
	}
	defer g.Close()
	if a := g.Address(); !a.Addr().IsPrivate() || a.Port() == 0 {
		t.Errorf("advertises %v", a)
	}
}

func TestOpenErrors(t *testing.T) {
	good := func() Options {
		return Options{Cluster: "prod", Bind: netip.MustParseAddrPort("127.0.0.1:0"), Meta: Meta{ID: "a", Peer: "a:1"}, Local: true}
	}
	for name, change := range map[string]func(*Options){
		"Cluster":       func(o *Options) { o.Cluster = "a b" },
		"NoBind":        func(o *Options) { o.Bind = netip.AddrPort{} },
		"NoID":          func(o *Options) { o.Meta.ID = "" },
		"NoPeer":        func(o *Options) { o.Meta.Peer = "" },
		"Key":           func(o *Options) { o.Keys = [][]byte{[]byte("short")} },
		"IPv6Any":       func(o *Options) { o.Bind = netip.MustParseAddrPort("[::]:0") },
		"AdvertiseAny":  func(o *Options) { o.Advertise = "0.0.0.0:1" },
		"AdvertisePort": func(o *Options) { o.Advertise = "127.0.0.1:x" },
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			change(&o)
			g, err := Open(o)
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Errorf("got %v", err)
			}
			if err == nil {
				_ = g.Close()
			}
		})
	}
	t.Run("InUse", func(t *testing.T) {
		a, err := Open(good())
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		o := good()
		o.Bind = a.Address()
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
		if err := errors.Join(a.Close(), a.Close()); err != nil {
			t.Error(err)
		}
	})
}

// Updates, leaving, reading and closing at the same time.
func TestConcurrentUse(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	b := start(t, "b", "127.0.0.2:0", seeds(a))
	a.seesAlive(t, "b")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 50 {
				b.Update(func(m *Meta) { m.StateVersion += i })
				_ = b.Members()
				_ = b.HealthScore()
				_ = b.Problem()
			}
		})
	}
	all.Wait()
	a.sees(t, "the last update", func([]Member) bool { return a.member("b").StateVersion == 1+50*(0+1+2+3) })
	all.Go(func() { _ = b.Leave(time.Second) })
	all.Go(b.stop)
	all.Go(func() { b.Update(func(m *Meta) { m.Draining = true }) })
	all.Wait()
}

func equalMeta(a, b Meta) bool {
	boot := slices.Equal(a.Boot, b.Boot)
	a.Boot, b.Boot = nil, nil
	return boot && a.ID == b.ID && a.Peer == b.Peer && a.Version == b.Version && a.Wire == b.Wire && a.Expect == b.Expect && a.StateVersion == b.StateVersion && a.Draining == b.Draining
}
