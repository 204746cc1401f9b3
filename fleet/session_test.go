package fleet

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"eboot"
)

// opening is the session of boot number of the bundle, age after its loader started.
func opening(number uint64, age time.Duration) Opened {
	return Opened{Boot: number, Manifest: bundle.Manifest, Bundle: bundle.Ref(), Channel: "stable", Mode: "interactive", Age: age}
}

// opens a session as a server does.
func opens(c *Connection, o Opened) eboot.Pin {
	c.Requested("eboot_open", nil)
	pin := c.Opened(o)
	c.Sent(5000)
	return pin
}

// reports as a server notes it: there is no reply.
func reports(c *Connection, r Report) {
	c.Requested("eboot_report", nil)
	c.Reported(r)
}

func marks(pairs ...any) (m []eboot.BootMark) {
	for i := 0; i < len(pairs); i += 2 {
		m = append(m, eboot.BootMark{Phase: pairs[i].(string), AtMS: int64(pairs[i+1].(int))})
	}
	return m
}

func TestCuredBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Server: "s1"})
		stop := run(t, f)
		changes := f.Follow(t.Context())
		began := time.Now()
		c := f.Connect(slave, erts)
		boots(c)
		advance(300 * time.Millisecond)
		opened := time.Now()
		if pin := opens(c, opening(7, 20*time.Millisecond)); pin != (eboot.Pin{}) {
			t.Errorf("the boot was pinned again: %+v", pin)
		}
		cured := eboot.CuredBoot{Number: 7, Mode: "interactive"}
		want := eboot.Boot{
			Slave: slave, Server: "s1", ERTS: erts, Channel: "stable", Bundle: bundle.Ref(), Manifest: bundle.Manifest,
			Loader: eboot.LoaderEboot, Phase: eboot.BootLoading, Began: began, Latest: opened, Requests: 2, Bytes: 5100, Cured: &cured,
		}
		check := func(when string) {
			t.Helper()
			synctest.Wait()
			got := f.BootsOf(slave)
			if len(got) == 1 {
				want.BootRecord = got[0].BootRecord // TestRevisions has it
			}
			if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
				t.Errorf("%s:\n got %+v, cured %+v\nwant %+v, cured %+v", when, got, got[0].Cured, want, want.Cured)
			}
		}
		check("opened")
		advance(10 * time.Second) // it has what it needs
		check("after ten quiet seconds")
		reports(c, Report{Phases: marks("preloaded", 3, "kernel_load_completed", 400), Switches: 0, Local: 120})
		want.Latest, want.Requests = time.Now(), 3
		cured.Phases, cured.Local = marks("preloaded", 3, "kernel_load_completed", 400), 120
		check("half way")
		before := f.BootsOf(slave)[0]

		reports(c, Report{Phases: marks("started", 10_000), Local: 200})
		want.Requests = 4
		want.Phase, want.Loaded = eboot.BootStarted, opened.Add(-20*time.Millisecond+10_000*time.Millisecond)
		cured.Phases, cured.Local = append(cured.Phases, marks("started", 10_000)...), 200
		check("started")
		if len(before.Cured.Phases) != 2 || before.Cured.Local != 120 {
			t.Errorf("what was handed out has changed: %+v", before.Cured)
		}
		if s := f.Stats(); s.Loading != 0 || s.Begun != 1 {
			t.Errorf("%+v", s)
		}

		advance(time.Minute)
		c.Closed(true) // without use
		want.Phase = eboot.BootClosed
		check("closed")
		advance(time.Hour)
		c = f.Connect(slave, erts)
		opens(c, opening(7, time.Hour))
		want.Phase, want.Latest, want.Requests, want.Bytes = eboot.BootStarted, time.Now(), 5, 10_100
		check("a module an hour later")
		c.Closed(true)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var seen []string
		for b := range changes {
			phases := 0
			if b.Cured != nil {
				phases = len(b.Cured.Phases)
			}
			seen = append(seen, fmt.Sprintf("%s %s %d", b.Loader, b.Phase, phases))
		}
		if want := []string{"stock loading 0", "eboot loading 0", "eboot loading 2", "eboot started 3", "eboot closed 3", "eboot started 3", "eboot closed 3"}; !slices.Equal(seen, want) {
			t.Errorf("followers saw %q, want %q", seen, want)
		}
	})
}

// On a slow link a second may pass before the script has arrived: that was not the end.
func TestQuietBeforeTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		boots(c)
		advance(3 * time.Second)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootQuiet {
			t.Fatalf("%+v", b)
		}
		opens(c, opening(7, 0))
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootLoading || !b.Loaded.IsZero() || f.Stats().Loading != 1 {
			t.Errorf("%+v", b)
		}
		c.Closed(true)
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootClosed || !b.Loaded.IsZero() {
			t.Errorf("closed before it started: %+v", b)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Server: "s2"})
		stop := run(t, f)
		phase := func(when string, want eboot.BootPhase, requests int64) {
			t.Helper()
			synctest.Wait()
			if b := f.BootsOf(slave); len(b) != 1 || b[0].Phase != want || b[0].Requests != requests || !b[0].Cured.TakenOver {
				t.Errorf("%s: %+v, want %s with %d requests", when, b, want, requests)
			}
		}
		now := time.Now()
		one := f.Connect(slave, erts)
		pin := opens(one, opening(7, 2*time.Second))
		if want := canonical(pinOf(slave, "m", now.Add(-2*time.Second))); pin != want {
			t.Errorf("pin %+v, want %+v", pin, want)
		}
		if known, _ := f.Pin(slave, erts); known != pin {
			t.Errorf("known pin %+v", known)
		}
		phase("taken over", eboot.BootLoading, 1)
		if b := f.BootsOf(slave)[0]; !b.Began.Equal(now.Add(-2*time.Second)) || b.Server != "s2" || b.Channel != "stable" || b.Bundle != bundle.Ref() {
			t.Errorf("%+v", b)
		}
		one.Reported(Report{Phases: marks("preloaded", 1), Switches: 1})
		advance(5 * time.Second)
		phase("it reports, so it is in the middle of its boot", eboot.BootLoading, 1)
		one.Closed(true)
		phase("lost again", eboot.BootClosed, 1)

		two := f.Connect(slave, erts) // it may have been elsewhere meanwhile
		if pin := opens(two, opening(7, 7*time.Second)); pin != (eboot.Pin{}) {
			t.Errorf("pinned again: %+v", pin)
		}
		phase("back", eboot.BootLoading, 2)
		advance(2 * time.Second)
		phase("silent", eboot.BootQuiet, 2)
		if b := f.BootsOf(slave)[0]; !b.Loaded.IsZero() {
			t.Errorf("nobody said that it has started: %+v", b)
		}
		two.Reported(Report{Phases: marks("preloaded", 1), Switches: 2}) // known
		phase("nothing new", eboot.BootQuiet, 2)
		two.Reported(Report{Phases: marks("kernel_load_completed", 8000)})
		phase("in the middle of its boot after all", eboot.BootLoading, 2)
		advance(5 * time.Second)
		two.Reported(Report{Phases: marks("started", 12_500)})
		phase("started", eboot.BootStarted, 2)
		b := f.BootsOf(slave)[0]
		if b.Loaded.Sub(b.Began) != 12_500*time.Millisecond || b.Cured.Switches != 2 || len(b.Cured.Phases) != 3 {
			t.Errorf("%+v, %+v", b, b.Cured)
		}
		two.Closed(true)
		if s := f.Stats(); s.Begun != 0 || s.Finished != 1 || s.Loading != 0 {
			t.Errorf("%+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A boot that was taken over long after it began, or comes back, is busy while it asks,
// reports or gets files: followers are told of no quiet that there was not.
func TestTakenOverBootIsNotQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		changes := f.Follow(t.Context())
		wait := func(d time.Duration) {
			t.Helper()
			advance(d)
			synctest.Wait()
			if b := f.BootsOf(slave); len(b) != 1 || b[0].Phase != eboot.BootLoading {
				t.Fatalf("%+v", b)
			}
		}
		const almost = quietAfter - checkEvery
		c := f.Connect(slave, erts)
		c.Opened(opening(7, time.Minute)) // whoever calls first
		wait(almost)
		c.Reported(Report{}) // nothing new, but it lives
		wait(almost)
		c.Requested("eboot_fetch", module)
		wait(30 * time.Second) // on a slow line
		c.Sent(1000)
		wait(almost)
		reports(c, Report{Phases: marks("preloaded", 1)})
		wait(stuckAfter - checkEvery)
		c.Closed(false)
		advance(time.Minute)
		c = f.Connect(slave, erts)
		c.Opened(opening(7, 2*time.Hour))
		wait(almost)
		reports(c, Report{Phases: marks("preloaded", 1)})
		wait(almost)
		advance(2 * quietAfter)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootQuiet || b.Requests != 3 {
			t.Errorf("silent, with no reply due: %+v", b)
		}
		c.Closed(true)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var seen []eboot.BootPhase
		for b := range changes {
			seen = append(seen, b.Phase)
		}
		want := []eboot.BootPhase{eboot.BootLoading, eboot.BootLoading, eboot.BootClosed, eboot.BootLoading, eboot.BootQuiet, eboot.BootClosed}
		if !slices.Equal(seen, want) {
			t.Errorf("followers saw %q, want %q", seen, want)
		}
	})
}

// Which boot a session on a further connection belongs to, after a script on one that is gone.
func TestSessionOfLostScript(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(*Connection) // after the script
		close  bool
		opened func(*Opened)
		erts   string
		same   bool
	}{
		{name: "connection lost right after the script", close: true, same: true},
		{name: "connection still open: another slave's", close: false},
		{name: "another boot of long ago", close: true, opened: func(o *Opened) { o.Age = time.Hour }},
		{name: "another bundle", close: true, opened: func(o *Opened) { o.Manifest = digest("other") }},
		{name: "another ERTS version", close: true, erts: "14.0"},
		{name: "it became another slave's", before: func(c *Connection) { opens(c, opening(8, 0)) }, close: true},
		{name: "it was opened without a number", before: func(c *Connection) { opens(c, opening(0, 0)) }, close: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := open(t, Options{})
			one := f.Connect(slave, erts)
			boots(one)
			if tc.before != nil {
				tc.before(one)
			}
			if tc.close {
				one.Closed(true)
			} else {
				defer one.Closed(true)
			}
			if tc.erts == "" {
				tc.erts = erts
			}
			o := opening(7, time.Second)
			if tc.opened != nil {
				tc.opened(&o)
			}
			two := f.Connect(slave, tc.erts)
			defer two.Closed(true)
			opens(two, o)
			got := f.BootsOf(slave)
			i := slices.IndexFunc(got, func(b eboot.Boot) bool { return b.Cured != nil && b.Cured.Number == 7 })
			if i < 0 || len(got) == 1 != tc.same || got[i].Cured.TakenOver == tc.same || got[i].Phase != eboot.BootLoading {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A stock boot that has been quiet was complete: no session of another slave takes it.
func TestQuietBootIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		boots(c)
		advance(2 * time.Second)
		synctest.Wait()
		c.Closed(true)
		c = f.Connect(slave, erts)
		opens(c, opening(7, 2*time.Second))
		c.Closed(true)
		if got := f.BootsOf(slave); len(got) != 2 {
			t.Errorf("%+v", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// What a connection carried, or was guessed to carry, does not become another slave's boot.
func TestSessionLeavesOtherBoots(t *testing.T) {
	f := open(t, Options{})
	stock := f.Connect(slave, erts)
	defer stock.Closed(true)
	boots(stock)
	c := f.Connect(slave, erts)
	loads(c) // counts to the stock boot: it has not said who it is
	opens(c, opening(7, time.Second))
	loads(c)
	opens(c, opening(7, time.Second)) // again is the same
	strange := opening(7, time.Second)
	strange.Manifest = digest("other")
	opens(c, strange)
	opens(c, opening(9, time.Second))
	loads(c)
	plain := f.Connect(slave, erts) // a stock slave that reconnects is none of the cured ones
	defer plain.Closed(true)
	loads(plain)

	type row struct {
		number   uint64
		manifest eboot.Digest
		requests int64
		phase    eboot.BootPhase
	}
	var got []row
	for _, b := range f.BootsOf(slave) {
		r := row{manifest: b.Manifest, requests: b.Requests, phase: b.Phase}
		if b.Cured != nil {
			r.number = b.Cured.Number
		}
		got = append(got, r)
	}
	for _, want := range []row{
		{0, bundle.Manifest, 3, eboot.BootLoading},
		{7, bundle.Manifest, 3, eboot.BootClosed},
		{7, digest("other"), 1, eboot.BootClosed},
		{9, bundle.Manifest, 2, eboot.BootLoading},
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%+v is not among %+v", want, got)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d boots", len(got))
	}
	c.BootBegan("stable", bundle, "") // whatever it was, a script begins a boot of its own
	if b := f.BootsOf(slave); len(b) != 5 || b[0].Loader != eboot.LoaderStock {
		t.Errorf("%+v", b)
	}
	c.Closed(true)
}

func TestReportsAreBounded(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Now: func() time.Time { return now }})
	c := f.Connect(slave, erts)
	defer c.Closed(true)
	c.Reported(Report{Phases: marks("started", 1)}) // no session: nothing happens
	boots(c)
	c.Reported(Report{Phases: marks("started", 1)})
	if b := f.BootsOf(slave)[0]; b.Cured != nil || b.Phase != eboot.BootLoading {
		t.Fatalf("a stock boot reported: %+v", b)
	}
	o := opening(7, math.MinInt64)
	o.Mode = strings.Repeat("\x1b", 100)
	opens(c, o)
	var many []eboot.BootMark
	for i := range 100 {
		many = append(many, eboot.BootMark{Phase: "\x1b[2J" + strings.Repeat("é", 1000), AtMS: int64(i)})
	}
	c.Reported(Report{Phases: many, Switches: -1, Local: math.MinInt64})
	c.Reported(Report{Phases: []eboot.BootMark{{Phase: "started", AtMS: math.MaxInt64}}, Switches: math.MaxInt64})
	c.Reported(Report{Phases: marks("more", 1, "started", 5), Switches: 3})
	b := f.BootsOf(slave)[0]
	if n := len(b.Cured.Phases); n != maxMarks || b.Phase != eboot.BootStarted || !b.Loaded.Equal(now) {
		t.Errorf("%d phases; %+v", n, b)
	}
	for i, m := range b.Cured.Phases {
		if len(m.Phase) > maxMark || !utf8.ValidString(m.Phase) || strings.Contains(m.Phase, "\x1b") || m.AtMS < 0 || m.AtMS > maxAge.Milliseconds() {
			t.Errorf("phase %d: %+v", i, m)
		}
	}
	if b.Cured.Switches != math.MaxInt64 || b.Cured.Local != 0 || len(b.Cured.Mode) > maxMode || strings.Contains(b.Cured.Mode, "\x1b") {
		t.Errorf("%+v", b.Cured)
	}

	old := f.Connect(other, erts)
	defer old.Closed(true)
	opens(old, opening(8, math.MaxInt64))
	old.Reported(Report{Phases: marks("started", -5)})
	if b := f.BootsOf(other)[0]; !b.Began.Equal(now.Add(-maxAge)) || !b.Loaded.Equal(b.Began) {
		t.Errorf("%+v", b)
	}
}

func TestSessionPins(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC)
	const age = time.Hour
	began := now.Add(-age)
	mine, others := pinOf(slave, "m", began), func(at time.Time) eboot.Pin { return pinOf(slave, "others", at) }
	great, _ := greater("m", "others")
	for _, tc := range []struct {
		name    string
		known   eboot.Pin
		entered bool
	}{
		{"none", eboot.Pin{}, true},
		{"of an earlier boot", others(began.Add(-1)), true},
		{"of a later boot", others(began.Add(1)), false},
		{"at the same time", others(began), great == "m"},
		{"of this boot, by another clock", pinOf(slave, "m", began.Add(-sameBoot+1)), false},
		{"of this boot, by a clock ahead", pinOf(slave, "m", began.Add(time.Minute)), false},
		{"of an earlier boot of the same bundle", pinOf(slave, "m", began.Add(-sameBoot)), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := open(t, Options{Now: func() time.Time { return now }, Pins: 1})
			if tc.known != (eboot.Pin{}) {
				f.MergePins([]eboot.Pin{tc.known})
			}
			want, known := eboot.Pin{}, tc.known
			if tc.entered {
				want, known = mine, mine
			}
			c := f.Connect(slave, erts)
			defer c.Closed(true)
			if pin := opens(c, opening(7, age)); pin != want {
				t.Errorf("returned %+v, want %+v", pin, want)
			}
			if pin, _ := f.Pin(slave, erts); pin != known {
				t.Errorf("known %+v, want %+v", pin, known)
			}
			if pin := opens(c, opening(7, age)); pin != (eboot.Pin{}) {
				t.Errorf("the second session returned %+v", pin)
			}
		})
	}
	f := open(t, Options{})
	c := f.Connect(netip.MustParseAddr("::1"), erts)
	if pin := opens(c, opening(7, 0)); pin != (eboot.Pin{}) || len(f.Pins()) != 0 {
		t.Errorf("an IPv6 address was pinned: %+v", pin)
	}
	c.Closed(true)
}

// Slaves behind one address, each with connections that come and go, are told apart by
// their numbers.
func TestSessionsOfOneAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, err := New(Options{FinishedEach: 100})
		if err != nil {
			t.Fatal(err)
		}
		type boot struct {
			open     []*Connection
			requests int64
			started  bool
		}
		model := map[uint64]*boot{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			number := uint64(rapid.IntRange(1, 4).Draw(t, "slave"))
			b := model[number]
			if b == nil { // its first connection, with a script or taken over
				b = &boot{}
				model[number] = b
				c := f.Connect(slave, erts)
				if rapid.Bool().Draw(t, "script") {
					boots(c)
					b.requests++
				}
				opens(c, opening(number, time.Second))
				b.requests++
				b.open = append(b.open, c)
				continue
			}
			switch step := rapid.IntRange(0, 4).Draw(t, "step"); {
			case step == 0 || len(b.open) == 0:
				c := f.Connect(slave, erts)
				opens(c, opening(number, time.Second))
				b.requests++
				b.open = append(b.open, c)
			case step == 1:
				b.open[0].Closed(true)
				b.open = b.open[1:]
			case step == 2:
				b.open[0].Reported(Report{Phases: marks("started", 5)})
				b.started = true
			default:
				loads(b.open[0])
				b.requests++
			}
		}
		got := f.BootsOf(slave)
		if len(got) != len(model) {
			t.Fatalf("%d boots of %d slaves: %+v", len(got), len(model), got)
		}
		loading := 0
		for _, known := range got {
			b := model[known.Cured.Number]
			want := eboot.BootClosed
			switch {
			case len(b.open) > 0 && b.started:
				want = eboot.BootStarted
			case len(b.open) > 0:
				want = eboot.BootLoading
				loading++
			}
			if known.Phase != want || known.Requests != b.requests || known.Loaded.IsZero() == b.started {
				t.Fatalf("%+v, want %s with %d requests", known, want, b.requests)
			}
		}
		if f.Stats().Loading != loading {
			t.Fatalf("%d loading, want %d", f.Stats().Loading, loading)
		}
	})
}

// Names of phases are words, from slaves and from other servers.
func TestPhasesAreWords(t *testing.T) {
	f := open(t, Options{Server: "s1"})
	c := f.Connect(slave, erts)
	boots(c)
	opens(c, opening(7, 0))
	long := strings.Repeat("<", 2*maxMark)
	reports(c, Report{Phases: marks("Kernel_load-completed 2\x00\xff", 1, long, 2, "é", 3)})
	got := f.BootsOf(slave)[0].Cured.Phases
	if want := marks("Kernel_load_completed_2__", 1, strings.Repeat("_", maxMark), 2, "__", 3); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	b := remoteBoot(1, time.Now())
	b.Cured.Phases = marks("<script>", 1)
	f.MergeBoots([]eboot.Boot{b})
	if got := f.BootsOf(b.Slave)[0].Cured.Phases; !slices.Equal(got, marks("_script_", 1)) {
		t.Errorf("%+v", got)
	}
}

// A thousand boots, or events, travel in one message, whatever slaves make of them.
func TestHostileSlavesFillNoMessage(t *testing.T) {
	const limit = 4 << 20
	now := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.FixedZone("", 3600))
	f := open(t, Options{Server: "3f1c8a52-7f5e-4a86-9a52-1f4f0d0a5b11", Now: func() time.Time { return now }})
	name := strings.Repeat("n", 64)
	large := eboot.Bundle{Name: name, Version: name, ERTS: strings.Repeat("1", maxERTS), Manifest: bundle.Manifest}
	angry := strings.Repeat("<", 1<<10)
	a := slave
	for i := range 1000 {
		a = a.Next()
		c := f.Connect(a, large.ERTS)
		c.Requested("get", []byte(angry))
		c.BootBegan(name, large, strings.Repeat("<", maxRollout))
		c.Opened(Opened{Boot: math.MaxUint64 - uint64(i), Manifest: large.Manifest, Bundle: large.Ref(), Channel: name, Mode: angry, Age: maxAge, Control: true})
		r := Report{Switches: math.MaxInt64, Local: math.MaxInt64}
		for i := range maxMarks {
			r.Phases = append(r.Phases, eboot.BootMark{Phase: angry, AtMS: math.MaxInt64 - int64(i)}, eboot.BootMark{Phase: fmt.Sprint(i, angry), AtMS: math.MaxInt64})
		}
		r.Phases = append(r.Phases, marks("started", 1)...)
		c.Reported(r)
		if i%2 == 0 {
			c.Closed(true)
		}
	}
	now = now.Add(goneAfter)
	f.checkGone()
	all := f.Boots()
	encoded, err := json.Marshal(all)
	if err != nil || len(all) != 1000 || len(all[0].Cured.Phases) != maxMarks || len(encoded) >= limit {
		t.Errorf("%d boots take %d bytes: %v", len(all), len(encoded), err)
	}
	for len(f.Events()) < 1000 {
		for range maxEvents { // each at its worst, were there no quota
			a = a.Next()
			e := eboot.Event{Kind: eboot.EventBootLooping, Slave: a, ERTS: printable(angry, maxERTS), Channel: name, Bundle: large.Ref(), Text: angry}
			f.Observe(e)
		}
	}
	if encoded, err = json.Marshal(f.Events()[:1000]); err != nil || len(encoded) >= limit {
		t.Errorf("1000 events take %d bytes: %v", len(encoded), err)
	}
}
