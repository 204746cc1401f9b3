package fleet

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"eboot"
)

// pair are two servers that tell each other what they observe when exchange is called.
type pair struct {
	one, two     *Fleet
	toOne, toTwo news
}

// news is what one of them has not been told yet.
type news struct {
	mu    sync.Mutex
	boots []eboot.Boot
}

func (n *news) tell(b eboot.Boot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.boots = append(n.boots, b)
}

func (n *news) take() []eboot.Boot {
	n.mu.Lock()
	defer n.mu.Unlock()
	boots := n.boots
	n.boots = nil
	return boots
}

func newPair(t *testing.T) *pair {
	p := &pair{}
	p.one = open(t, Options{Server: "s1", OnBoot: p.toTwo.tell})
	p.two = open(t, Options{Server: "s2", OnBoot: p.toOne.tell})
	for _, f := range []*Fleet{p.one, p.two} {
		stop := run(t, f)
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
	return p
}

func (p *pair) exchange() {
	synctest.Wait()
	for {
		toOne, toTwo := p.toOne.take(), p.toTwo.take()
		if len(toOne)+len(toTwo) == 0 {
			return
		}
		p.one.MergePins(p.two.Pins())
		p.two.MergePins(p.one.Pins())
		p.one.MergeBoots(toOne)
		p.two.MergeBoots(toTwo)
	}
}

// both returns the only boot, of which the two servers must think alike.
func (p *pair) both(t *testing.T) eboot.Boot {
	t.Helper()
	p.exchange()
	one, two := p.one.BootsOf(slave), p.two.BootsOf(slave)
	if len(one) != 1 || len(two) != 1 || !sameBoots(one, two) {
		t.Fatalf("boots differ, or there is not one:\n%+v\n%+v", one, two)
	}
	return one[0]
}

// sameBoots compares but what a connection has counted since it was last told.
func sameBoots(a, b []eboot.Boot) bool {
	return slices.EqualFunc(a, b, func(a, b eboot.Boot) bool {
		return a.ID == b.ID && a.Revision == b.Revision && a.Server == b.Server && a.Phase == b.Phase && a.Failure == b.Failure &&
			a.Began.Equal(b.Began) && a.Loaded.Equal(b.Loaded) && a.EndedAt.Equal(b.EndedAt) && a.Rollout == b.Rollout && reflect.DeepEqual(a.Cured, b.Cured)
	})
}

// A slave that loses its server goes on with the same boot on another.
func TestAdoption(t *testing.T) {
	for _, tc := range []struct {
		name    string
		session bool // it has a loader of ours
		up      bool // before it moves
		dies    bool // the first server, else the slave closes its connection, and that is known late
	}{
		{name: "stock, server dead", dies: true},
		{name: "stock"},
		{name: "stock, up", up: true},
		{name: "of ours, server dead", session: true, dies: true},
		{name: "of ours", session: true},
		{name: "of ours, up", session: true, up: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				c := p.one.Connect(slave, erts)
				boots(c)
				if tc.session {
					opens(c, opening(7, 0))
				}
				if tc.up {
					advance(2 * time.Second)
					synctest.Wait()
					if tc.session {
						reports(c, Report{Phases: marks("started", 2000)})
					}
				}
				before := p.both(t)
				if before.Server != "s1" || before.Loaded.IsZero() == tc.up {
					t.Fatalf("%+v", before)
				}
				advance(time.Second / 2)
				if !tc.dies {
					c.Closed(true) // which is told after the second server has seen the slave
				}
				d := p.two.Connect(slave, erts)
				if tc.session {
					opens(d, opening(7, 2500*time.Millisecond))
				} else {
					loads(d)
				}
				b := p.both(t)
				want := eboot.BootLoading
				switch {
				case tc.up && tc.session:
					want = eboot.BootStarted
				case tc.up:
					want = eboot.BootQuiet
				}
				if b.ID != before.ID || b.Server != "s2" || b.Phase != want || !b.Began.Equal(before.Began) || !b.Loaded.Equal(before.Loaded) {
					t.Errorf("after the move: %+v\nbefore: %+v", b, before)
				}
				if tc.session && !b.Cured.TakenOver {
					t.Errorf("not taken over: %+v", b.Cured)
				}
				advance(time.Minute)
				if tc.session {
					reports(d, Report{Phases: marks("started", 3000)})
					advance(time.Minute)
				}
				d.Closed(true)
				if tc.dies {
					c.Closed(true) // its process ends
				}
				advance(time.Minute)
				if b := p.both(t); b.Phase != eboot.BootClosed || b.Failure != "" || b.Loaded.IsZero() || b.Server != "s2" {
					t.Errorf("in the end: %+v", b)
				}
				if n := len(p.one.Events()) + len(p.two.Events()); n > 0 {
					t.Errorf("%d events", n)
				}
			})
		})
	}
}

// A server may take a slave over before it has heard of its boot.
func TestAdoptionOfUnknown(t *testing.T) {
	for _, cured := range []bool{true, false} { // as the first server knows it
		t.Run(fmt.Sprint(cured), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				c := p.one.Connect(slave, erts)
				boots(c)
				if cured {
					opens(c, opening(7, 0))
				}
				advance(time.Second / 2)
				c.Closed(true)
				d := p.two.Connect(slave, erts)
				opens(d, opening(7, time.Second/2))
				if b := p.both(t); b.Server != "s2" || b.Phase != eboot.BootLoading || !b.Cured.TakenOver {
					t.Errorf("%+v", b)
				}
				advance(time.Minute / 2)
				reports(d, Report{Phases: marks("started", 3000)})
				if b := p.both(t); b.Failure != "" || b.Phase != eboot.BootStarted {
					t.Errorf("%+v", b)
				}
				d.Closed(false)
			})
		})
	}
}

// A failure that was found while the slave looked for another server is taken back.
func TestLateMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		c := p.one.Connect(slave, erts)
		boots(c)
		c.Closed(true)
		advance(2 * goneAfter)
		if b := p.both(t); b.Phase != eboot.BootFailed || b.Failure == "" {
			t.Fatalf("%+v", b)
		}
		d := p.two.Connect(slave, erts)
		loads(d)
		if b := p.both(t); b.Phase != eboot.BootLoading || b.Failure != "" || !b.FailedAt.IsZero() || b.Server != "s2" {
			t.Errorf("%+v", b)
		}
		if b := p.two.BootsOf(slave)[0]; b.Requests != 2 || b.Bytes != 1100 {
			t.Errorf("%+v", b)
		}
		d.Closed(false)
	})
}

// Another boot on another server ends the one here.
func TestBootsAgainElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		c := p.one.Connect(slave, erts)
		boots(c)
		c.Closed(true)
		advance(time.Second)
		d := p.two.Connect(slave, erts)
		boots(d)
		defer d.Closed(false)
		p.exchange()
		advance(goneAfter)
		p.exchange()
		for _, f := range []*Fleet{p.one, p.two} {
			got := f.BootsOf(slave)
			if len(got) != 2 || got[1].Failure != "booted again 1s into its boot" || got[1].Server != "s1" || got[0].Failure != "" || got[0].Server != "s2" {
				t.Errorf("%+v", got)
			}
		}
		if len(p.one.LocalBoots()) != 1 || len(p.two.LocalBoots()) != 1 || p.two.LocalBoots()[0].Server != "s2" {
			t.Errorf("local: %+v, %+v", p.one.LocalBoots(), p.two.LocalBoots())
		}
	})
}

// A slave that is back before the news of where it was has arrived is not given away.
func TestMovedAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		c := p.one.Connect(slave, erts)
		boots(c)
		opens(c, opening(7, 0))
		p.exchange()
		advance(time.Second / 2)
		c.Closed(true)
		d := p.two.Connect(slave, erts)
		opens(d, opening(7, time.Second/2))
		advance(time.Second / 2)
		d.Closed(true)
		back := p.one.Connect(slave, erts)
		opens(back, opening(7, time.Second))
		if b := p.both(t); b.Server != "s1" || b.Phase != eboot.BootLoading {
			t.Errorf("%+v", b)
		}
		reports(back, Report{Phases: marks("started", 1000)})
		advance(time.Minute)
		if b := p.both(t); b.Server != "s1" || b.Phase != eboot.BootStarted || b.Failure != "" {
			t.Errorf("later: %+v", b)
		}
		back.Closed(false)
	})
}

// What the former server has to say when the slave has moved is no news, however much it is.
func TestLateNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		c := p.one.Connect(slave, erts)
		boots(c)
		opens(c, opening(7, 0))
		p.exchange()
		for i := range 10 {
			reports(c, Report{Phases: marks(fmt.Sprintf("phase %d", i), i)})
		}
		c.Closed(true)
		advance(time.Second / 2)
		d := p.two.Connect(slave, erts)
		opens(d, opening(7, time.Second/2))
		advance(goneAfter) // the first server takes it for gone
		if b := p.both(t); b.Server != "s2" || b.Failure != "" || b.Phase == eboot.BootClosed {
			t.Errorf("%+v", b)
		}
		d.Closed(false)
	})
}

// Two busy slaves that are taken for one do not make their servers talk without end.
func TestKeptNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		f := open(t, Options{Server: "s1", OnBoot: func(eboot.Boot) { told++ }})
		c := f.Connect(slave, erts)
		boots(c)
		defer c.Closed(false)
		for i, want := range []string{"s1", "s2", "s2"} {
			advance(time.Millisecond)
			loads(c)
			claim := f.BootsOf(slave)[0]
			claim.Server, claim.Revision, claim.Latest = "s2", claim.Revision+takeOver, claim.Latest.Add(-1)
			f.MergeBoots([]eboot.Boot{claim})
			if b := f.BootsOf(slave)[0]; b.Server != want {
				t.Errorf("claim %d: %+v, want %s", i, b, want)
			}
		}
		if told != 2 { // its beginning, and that it was kept
			t.Errorf("told %d times", told)
		}
	})
}

// A connection whose boot was claimed by another server, and which goes on, has it again: one of
// ours at once, one that may be another slave's after a while.
func TestRegain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		c := p.one.Connect(slave, erts)
		boots(c)
		p.exchange()
		advance(time.Second / 2)
		d := p.two.Connect(slave, erts) // another slave of the address, or so it seems
		loads(d)
		if b := p.both(t); b.Server != "s2" {
			t.Fatalf("%+v", b)
		}
		loads(c)
		if b := p.both(t); b.Server != "s2" {
			t.Errorf("taken back at once: %+v", b)
		}
		advance(regainAfter)
		p.both(t)
		loads(c)
		if b := p.both(t); b.Server != "s1" || b.Phase != eboot.BootQuiet {
			t.Errorf("not taken back: %+v", b)
		}
		d.Closed(true)
		advance(time.Minute)
		c.Closed(true)
		advance(time.Minute)
		if b := p.both(t); b.Server != "s1" || b.Phase != eboot.BootClosed || b.Failure != "" {
			t.Errorf("in the end: %+v", b)
		}
		if len(p.one.carried)+len(p.two.carried) != 0 {
			t.Error("carried by nothing")
		}

		c = p.one.Connect(other, erts)
		boots(c)
		opens(c, opening(8, 0))
		told := p.one.BootsOf(other)[0]
		told.Server, told.Revision, told.Latest = "s2", told.Revision+takeOver, time.Now().Add(time.Second)
		p.one.MergeBoots([]eboot.Boot{told})
		if b := p.one.BootsOf(other)[0]; b.Server != "s2" {
			t.Fatalf("%+v", b)
		}
		reports(c, Report{Phases: marks("started", 1)})
		if b := p.one.BootsOf(other)[0]; b.Server != "s1" || b.Phase != eboot.BootStarted {
			t.Errorf("%+v", b)
		}
		c.Closed(false)
	})
}

// What two servers tell of one boot comes to the same in whichever order it arrives.
func TestMergeOrder(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	boot := remoteBoot(1, now)
	with := func(change func(*eboot.Boot)) eboot.Boot {
		b := boot
		change(&b)
		return b
	}
	newer := with(func(b *eboot.Boot) { b.Revision = 9; b.Phase = eboot.BootClosed })
	greater := with(func(b *eboot.Boot) { b.Revision = 9; b.Server = "s9" })
	for _, tc := range []struct {
		name          string
		first, second eboot.Boot
		changed       int
		want          eboot.Boot
	}{
		{"the same", boot, boot, 0, boot},
		{"newer", boot, newer, 1, newer},
		{"older", newer, boot, 0, newer},
		{"of a greater server", newer, greater, 1, greater},
		{"of a lesser server", greater, newer, 0, greater},
		{"of another address", boot, with(func(b *eboot.Boot) { b.Revision = 9; b.Slave = other }), 0, boot},
		{"of another ERTS version", boot, with(func(b *eboot.Boot) { b.Revision = 9; b.ERTS = "14.0" }), 0, boot},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := open(t, Options{Server: "s1", OnBoot: func(b eboot.Boot) { t.Errorf("told of %+v", b) }})
			if n := f.MergeBoots([]eboot.Boot{tc.first}); n != 1 {
				t.Errorf("%d changed by the first", n)
			}
			if n := f.MergeBoots([]eboot.Boot{tc.second}); n != tc.changed {
				t.Errorf("%d changed, want %d", n, tc.changed)
			}
			if got := f.Boots(); len(got) != 1 || !reflect.DeepEqual(got[0], tc.want) {
				t.Errorf("\n got %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

// A server that was restarted is told of the boots that it served: their connections are gone.
func TestRestartedServer(t *testing.T) {
	var told []eboot.Boot
	f := open(t, Options{Server: "s2", OnBoot: func(b eboot.Boot) { told = append(told, b) }})
	before := remoteBoot(1, time.Now())
	f.MergeBoots([]eboot.Boot{before})
	if b := f.Boots(); len(b) != 1 || b[0].Phase != eboot.BootClosed || len(told) != 1 || told[0].Revision != before.Revision+1 || b[0].Cured.Control {
		t.Errorf("%+v; told %+v", b, told)
	}
	if _, seen := f.Sighting(before.Slave); seen {
		t.Error("a slave was sighted that was only told of")
	}
	if len(f.LocalBoots()) != 1 {
		t.Error("it is nobody's")
	}
	if b := f.Boots()[0]; b.EndedAt.IsZero() || !told[0].EndedAt.Equal(b.EndedAt) {
		t.Errorf("it has not ended: %+v", b)
	}
	stuck := remoteBoot(2, time.Now())
	stuck.Phase, stuck.Failure, stuck.FailedAt = eboot.BootFailed, stuckText, stuck.Latest
	f.MergeBoots([]eboot.Boot{stuck})
	if b := f.BootsOf(stuck.Slave)[0]; b.EndedAt.IsZero() || b.Phase != eboot.BootFailed || len(told) != 2 {
		t.Errorf("%+v; told %+v", b, told)
	}
	f.MergeBoots([]eboot.Boot{told[0], told[1]})
	if len(told) != 2 {
		t.Errorf("told again: %+v", told)
	}
}

// A boot belongs to a rollout from its beginning, whoever carries it; one that comes from nowhere, by
// what the server knows that it comes to. And it has ended when nobody carries it.
func TestRolloutAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		o := opening(7, 0)
		o.Rollout = "a later one"
		check := func(when, rollout string, endedAt time.Time) {
			t.Helper()
			if b := p.both(t); b.Rollout != rollout || !b.EndedAt.Equal(endedAt) {
				t.Errorf("%s: rollout %q, ended at %v; want %q, %v", when, b.Rollout, b.EndedAt, rollout, endedAt)
			}
		}
		c := p.one.Connect(slave, erts)
		c.Requested("get", script)
		c.BootBegan("stable", bundle, "r1")
		c.Sent(100)
		check("began", "r1", time.Time{})
		opens(c, o)
		check("opened", "r1", time.Time{})
		second := p.one.Connect(slave, erts)
		opens(second, o)
		reports(second, Report{Phases: marks("preloaded", 1)})
		advance(time.Second)
		c.Closed(true)
		check("another connection carries it", "r1", time.Time{})
		advance(time.Second)
		second.Closed(true)
		endedAt := time.Now()
		check("ended", "r1", endedAt)
		advance(2 * goneAfter)
		if b := p.both(t); b.Failure == "" {
			t.Errorf("%+v", b)
		}
		check("failed", "r1", endedAt)
		d := p.two.Connect(slave, erts)
		opens(d, o)
		check("adopted", "r1", time.Time{})
		reports(d, Report{Phases: marks("started", 1)})
		d.Closed(false)
		check("ended there", "r1", time.Now())
	})
	f := open(t, Options{Server: "s3"})
	o := opening(7, time.Minute)
	o.Rollout = "r2"
	c := f.Connect(slave, erts)
	opens(c, o)
	if b := f.BootsOf(slave); len(b) != 1 || b[0].Rollout != "r2" {
		t.Errorf("%+v", b)
	}
	o.Rollout = "r3"
	opens(f.Connect(slave, erts), o)
	if b := f.BootsOf(slave); len(b) != 1 || b[0].Rollout != "r2" {
		t.Errorf("%+v", b)
	}
}

// remoteBoot is one that server s2 observes, of slave number i.
func remoteBoot(i int, began time.Time) eboot.Boot {
	began = began.Round(0).UTC()
	return eboot.Boot{
		BootRecord: eboot.BootRecord{ID: fmt.Sprintf("3f1c8a52-7f5e-4a86-9a52-1f4f0d0a5b11-%d", i), Revision: 3},
		Slave:      netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Server: "s2", ERTS: erts, Channel: "stable",
		Bundle: bundle.Ref(), Manifest: bundle.Manifest, Loader: eboot.LoaderEboot, Phase: eboot.BootStarted,
		Began: began, Latest: began.Add(time.Second), Loaded: began.Add(time.Second), Requests: 200, Bytes: 1 << 20,
		Cured: &eboot.CuredBoot{Number: uint64(i + 1), Mode: "interactive", Control: true, Phases: marks(
			"preloaded", 10, "kernel_load_completed", 200, "modules_loaded", 300, "init_kernel_started", 350, "applications_loaded", 500, "started", 1000)},
	}
}

// A peer that is broken, or lies, changes nothing.
func TestBadBootsAreLeftOut(t *testing.T) {
	f := open(t, Options{Server: "s1"})
	for name, change := range map[string]func(*eboot.Boot){
		"IPv6":          func(b *eboot.Boot) { b.Slave = netip.MustParseAddr("2001:db8::1") },
		"no address":    func(b *eboot.Boot) { b.Slave = netip.Addr{} },
		"no id":         func(b *eboot.Boot) { b.ID = "" },
		"long id":       func(b *eboot.Boot) { b.ID = strings.Repeat("x", maxID+1) },
		"id":            func(b *eboot.Boot) { b.ID = "a b" },
		"server":        func(b *eboot.Boot) { b.Server = "s\x1b" },
		"ERTS":          func(b *eboot.Boot) { b.ERTS = "x" },
		"channel":       func(b *eboot.Boot) { b.Channel = "" },
		"bundle":        func(b *eboot.Boot) { b.Bundle.Version = "" },
		"manifest":      func(b *eboot.Boot) { b.Manifest = eboot.Digest{} },
		"phase":         func(b *eboot.Boot) { b.Phase = "asleep" },
		"revision":      func(b *eboot.Boot) { b.Revision = 1 << 63 },
		"requests":      func(b *eboot.Boot) { b.Requests = -1 },
		"bytes":         func(b *eboot.Boot) { b.Bytes = -1 },
		"failure":       func(b *eboot.Boot) { b.Failure = "\x1b[2J" },
		"rollout":       func(b *eboot.Boot) { b.Rollout = "\x1b" },
		"foreign":       func(b *eboot.Boot) { b.Rollout = "é" },
		"long rollout":  func(b *eboot.Boot) { b.Rollout = strings.Repeat("x", 65) },
		"end":           func(b *eboot.Boot) { b.EndedAt = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"long failure":  func(b *eboot.Boot) { b.Failure = strings.Repeat("x", maxText+1) },
		"no time":       func(b *eboot.Boot) { b.Began = time.Time{} },
		"year":          func(b *eboot.Boot) { b.Loaded = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"loader":        func(b *eboot.Boot) { b.Loader = "other" },
		"cured stock":   func(b *eboot.Boot) { b.Loader = eboot.LoaderStock },
		"nothing cured": func(b *eboot.Boot) { b.Cured = nil },
		"mode":          func(b *eboot.Boot) { b.Cured.Mode = strings.Repeat("x", maxMode+1) },
		"phases":        func(b *eboot.Boot) { b.Cured.Phases = make([]eboot.BootMark, maxMarks+1) },
		"mark":          func(b *eboot.Boot) { b.Cured.Phases[0].Phase = "\n" },
		"mark's time":   func(b *eboot.Boot) { b.Cured.Phases[0].AtMS = -1 },
		"switches":      func(b *eboot.Boot) { b.Cured.Switches = -1 },
	} {
		b := remoteBoot(1, time.Now())
		change(&b)
		if n := f.MergeBoots([]eboot.Boot{b}); n != 0 || len(f.Boots()) != 0 {
			t.Fatalf("%s: entered: %+v", name, f.Boots())
		}
	}
	b := remoteBoot(1, time.Now())
	b.Slave = netip.AddrFrom16(b.Slave.As16())
	if n := f.MergeBoots([]eboot.Boot{b}); n != 1 || len(f.BootsOf(b.Slave)) != 1 {
		t.Error("a good one was left out")
	}
}

func TestRemoteBootsAreBounded(t *testing.T) {
	f := open(t, Options{Server: "s1", Addresses: 50, Finished: 30, FinishedEach: 3})
	now := time.Now()
	for i := range 1000 {
		b := remoteBoot(i%100, now.Add(time.Duration(i)*time.Second))
		b.ID, b.Cured.Number = fmt.Sprintf("s2-%d", i), uint64(i+1)
		f.MergeBoots([]eboot.Boot{b})
		if len(f.BootsOf(b.Slave)) > 3 {
			t.Fatalf("%d boots of one slave", len(f.BootsOf(b.Slave)))
		}
	}
	if s := f.Stats(); s.Addresses != 50 || s.Boots != 30 || s.Finished != 30 || len(f.Boots()) != 30 {
		t.Errorf("%+v", s)
	}
	// A slave that boots a lot pushes its own boots out, not the latest of all others.
	f = open(t, Options{Server: "s1", Finished: 30})
	for i := range 100 {
		b := remoteBoot(min(i, 20), now.Add(time.Duration(i)*time.Second))
		b.ID, b.Cured.Number = fmt.Sprintf("s2-%d", i), uint64(i+1)
		f.MergeBoots([]eboot.Boot{b})
	}
	if n := len(f.Slaves()); n != 21 {
		t.Errorf("%d slaves are known, want 21", n)
	}
}
