package fleet

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"eboot"
)

// started is a slave with a loader of ours that boots in 2 s.
func started(f *Fleet, o Opened) *Connection {
	c := f.Connect(slave, erts)
	boots(c)
	opens(c, o)
	advance(2 * time.Second)
	reports(c, Report{Phases: marks("started", 2000)})
	return c
}

// What is a failure of a boot, and what is not. Each case ends when all that may follow has.
func TestFailures(t *testing.T) {
	controlled := opening(7, 0)
	controlled.Control = true
	stock := func(f *Fleet) *Connection {
		c := f.Connect(slave, erts)
		boots(c)
		return c
	}
	for _, tc := range []struct {
		name    string
		happens func(f *Fleet)
		want    string // failure of the first boot
		phase   eboot.BootPhase
	}{
		{"crashed in mid-boot", func(f *Fleet) {
			c := stock(f)
			advance(700 * time.Millisecond)
			c.Closed(true)
			advance(goneAfter + time.Second)
		}, "the node was gone 700ms into its boot", eboot.BootFailed},
		{"of ours, crashed in mid-boot", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			advance(12300 * time.Millisecond)
			c.Closed(true)
			advance(goneAfter + time.Second)
		}, "the node was gone 12s into its boot", eboot.BootFailed},
		{"the server closed", func(f *Fleet) {
			stock(f).Closed(false)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"one of two connections closed", func(f *Fleet) {
			one := stock(f)
			two := f.Connect(slave, erts)
			loads(two)
			one.Closed(true)
			advance(time.Minute)
			two.Closed(false)
		}, "", eboot.BootClosed},
		{"it changed its connection", func(f *Fleet) {
			stock(f).Closed(true)
			advance(goneAfter - checkEvery)
			c := f.Connect(slave, erts)
			loads(c)
			advance(2 * time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"it came back late", func(f *Fleet) {
			stock(f).Closed(true)
			advance(20 * time.Second)
			c := f.Connect(slave, erts)
			loads(c)
			advance(2 * time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"gone right after", func(f *Fleet) {
			c := stock(f)
			advance(3 * time.Second)
			c.Closed(true)
			advance(time.Minute)
		}, "the node was gone 3s after its boot", eboot.BootFailed},
		{"let go as loaders do", func(f *Fleet) {
			c := stock(f)
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"of ours, let go as loaders do", func(f *Fleet) {
			c := started(f, opening(7, 0))
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"it does not let go with control", func(f *Fleet) {
			c := started(f, controlled)
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "the node was gone 1m0s after its boot", eboot.BootFailed},
		{"it was told to restart", func(f *Fleet) {
			c := started(f, controlled)
			reports(c, Report{Phases: marks("restarting", 2001)})
			c.Closed(true)
			stock(f).Closed(false)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"stopped long after", func(f *Fleet) {
			c := started(f, controlled)
			advance(earlyWithin)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"booted again in mid-boot", func(f *Fleet) {
			stock(f).Closed(true)
			advance(time.Second)
			stock(f).Closed(false)
			advance(time.Minute)
		}, "booted again 1s into its boot", eboot.BootFailed},
		{"booted again right after", func(f *Fleet) {
			started(f, opening(7, 0)).Closed(true)
			advance(2100 * time.Millisecond)
			stock(f).Closed(false)
			advance(time.Minute)
		}, "booted again 2.1s after its boot", eboot.BootFailed},
		{"another slave of the address booted", func(f *Fleet) {
			c := started(f, opening(7, 0))
			stock(f).Closed(false)
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"it came back while another slave of the address booted", func(f *Fleet) {
			started(f, opening(7, 0)).Closed(true)
			stock(f).Closed(false)
			c := f.Connect(slave, erts)
			opens(c, opening(7, 2*time.Second))
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"another address booted", func(f *Fleet) {
			started(f, opening(7, 0)).Closed(true)
			c := f.Connect(other, erts)
			boots(c)
			c.Closed(false)
			advance(time.Minute)
		}, "the node was gone 0s after its boot", eboot.BootFailed},
		{"stuck", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			advance(stuckAfter + checkEvery)
			defer c.Closed(true)
			advance(time.Second)
		}, stuckText, eboot.BootFailed},
		{"stuck, and let go as loaders do", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			advance(stuckAfter - checkEvery)
			c.Closed(true)
			advance(time.Minute)
		}, stuckText, eboot.BootFailed},
		{"stuck, then up", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			advance(2 * stuckAfter)
			reports(c, Report{Phases: marks("started", 120_000)})
			advance(time.Minute)
			c.Closed(true)
			advance(time.Minute)
		}, "", eboot.BootClosed},
		{"stuck, then it asks", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			advance(2 * stuckAfter)
			loads(c)
			advance(time.Second)
			c.Closed(false)
		}, "", eboot.BootClosed},
		{"a long reply is not stuck", func(f *Fleet) {
			c := stock(f)
			opens(c, opening(7, 0))
			c.Requested("eboot_fetch", module)
			advance(2 * stuckAfter)
			c.Sent(1)
			c.Closed(false)
		}, "", eboot.BootClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := open(t, Options{Server: "s1"})
				stop := run(t, f)
				tc.happens(f)
				synctest.Wait()
				all := f.BootsOf(slave)
				b := all[len(all)-1]
				if b.Failure != tc.want || b.Phase != tc.phase || b.FailedAt.IsZero() != (tc.want == "") {
					t.Errorf("phase %s, failure %q at %v; want %s, %q", b.Phase, b.Failure, b.FailedAt, tc.phase, tc.want)
				}
				if s := f.Stats(); s.Loading != 0 || len(f.gone) != 0 || len(f.carried) != 0 || s.Finished != s.Boots {
					t.Errorf("left over: %+v, %d gone, %d carried", s, len(f.gone), len(f.carried))
				}
				failures := 0
				for _, e := range f.Events() {
					if e.Kind != eboot.EventBootFailed || e.Slave != slave || e.Server != "s1" || e.Bundle != bundle.Ref() || e.ERTS != erts || e.Channel != "stable" {
						t.Errorf("event %+v", e)
					}
					failures++
				}
				if tc.want != "" && (failures != 1 || !strings.HasSuffix(f.Events()[0].Text, tc.want)) {
					t.Errorf("events %+v", f.Events())
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A slave that boots again and again is told of once, until it has come up.
func TestLooping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		loops := func() (n int) {
			for _, e := range f.Events() {
				if e.Kind == eboot.EventBootLooping {
					n++
				}
			}
			return n
		}
		crash := func(n int, pause time.Duration) {
			for range n {
				c := f.Connect(slave, erts)
				boots(c)
				c.Closed(true)
				advance(pause)
			}
			synctest.Wait()
		}
		expect := func(when string, want int) {
			t.Helper()
			if got := loops(); got != want {
				t.Errorf("%s: %d events of loops, want %d", when, got, want)
			}
		}
		crash(5, 3*time.Minute)
		expect("slow failures", 0)
		crash(1, 10*time.Second)
		expect("two fast ones", 0)
		crash(1, 10*time.Second)
		expect("three", 1)
		crash(4, time.Second)
		advance(time.Minute)
		crash(3, 10*time.Second)
		expect("more of it", 1)
		c := started(f, opening(7, 0))
		c.Closed(false)
		crash(2, 10*time.Second)
		expect("two after it was up", 1)
		crash(1, 10*time.Second)
		expect("three after it was up", 2)
		if r := f.Slaves(); len(r) != 1 || r[0].Boots != DefaultFinishedEach || r[0].Failures != r[0].Boots-1 {
			t.Errorf("%+v", r)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Every change raises the revision and is told; counting alone is told now and then.
func TestRevisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []eboot.Boot
		var events []eboot.Event
		f := open(t, Options{Server: "s1", OnBoot: func(b eboot.Boot) { told = append(told, b) }, OnEvent: func(e eboot.Event) { events = append(events, e) }})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		boots(c)
		advance(2 * time.Second)
		loads(c)
		loads(c)
		advance(movedEvery)
		synctest.Wait()
		advance(10 * movedEvery) // nothing moves
		synctest.Wait()
		loads(c)
		c.Closed(true)
		advance(time.Minute)
		synctest.Wait()
		c = f.Connect(slave, erts)
		loads(c)
		c.Closed(false)
		type row struct {
			revision uint64
			phase    eboot.BootPhase
			requests int64
			failed   bool
		}
		var got []row
		for _, b := range told {
			if b.ID != told[0].ID || !strings.HasPrefix(b.ID, "s1-") || b.Server != "s1" {
				t.Errorf("%+v", b)
			}
			got = append(got, row{b.Revision, b.Phase, b.Requests, b.Failure != ""})
		}
		want := []row{
			{1, eboot.BootLoading, 1, false}, {2, eboot.BootQuiet, 1, false}, {3, eboot.BootQuiet, 3, false},
			{4, eboot.BootClosed, 4, false}, {5, eboot.BootFailed, 4, true},
			{6, eboot.BootQuiet, 5, false}, {7, eboot.BootClosed, 5, false},
		}
		if !slices.Equal(got, want) {
			t.Errorf("told\n%+v, want\n%+v", got, want)
		}
		if len(events) != 1 || !slices.Equal(events, f.Events()) {
			t.Errorf("events %+v", events)
		}
		boots(f.Connect(netip.MustParseAddr("10.9.9.9"), erts))
		if a, b := told[0].ID, told[len(told)-1].ID; a == b {
			t.Errorf("two boots are %s", a)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A slave that crashes soon after each boot is back, and up, before its failure is known.
func TestLoopingOfOneThatIsBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		for range 5 {
			c := f.Connect(slave, erts)
			boots(c)
			loads(c)
			advance(10 * time.Second)
			synctest.Wait()
			c.Closed(true)
		}
		advance(10 * time.Second)
		synctest.Wait()
		looping := 0
		for _, e := range f.Events() {
			if e.Kind == eboot.EventBootLooping {
				looping++
			}
		}
		if looping != 1 {
			t.Errorf("%d events of loops: %+v", looping, f.Events())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
