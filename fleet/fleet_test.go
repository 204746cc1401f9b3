package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"eboot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	slave  = netip.MustParseAddr("10.1.2.3")
	other  = netip.MustParseAddr("10.1.2.4")
	bundle = eboot.Bundle{Name: "otp", Version: "25", ERTS: erts, Manifest: eboot.DigestOf([]byte("m"))}
	script = []byte("/usr/lib/erlang/bin/start.boot")
	module = []byte("/usr/lib/erlang/lib/kernel/ebin/code.beam")
)

const erts = "13.1.5"

func open(t *testing.T, o Options) *Fleet {
	t.Helper()
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run runs f until the function it returns is called, which returns Run's error.
func run(t *testing.T, f *Fleet) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// advance lets d pass on the clock of a synctest bubble, which costs no real time.
func advance(d time.Duration) { <-time.After(d) }

func (f *Fleet) mustSighting(t *testing.T, a netip.Addr) eboot.Sighting {
	t.Helper()
	s, known := f.Sighting(a)
	if !known {
		t.Fatalf("%s is not known", a)
	}
	return s
}

// boots one slave as a server does: the script is asked for, then it is known
// what boots, then it is sent.
func boots(c *Connection) {
	c.Requested("get", script)
	c.BootBegan("stable", bundle, "")
	c.Sent(100)
}

func loads(c *Connection) {
	c.Requested("get", module)
	c.Sent(1000)
}

func TestSighting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		if s, known := f.Sighting(slave); known {
			t.Fatalf("never seen, but %+v", s)
		}
		asked := time.Now()
		f.Discovered(slave, erts, "not in the whitelist")
		s := f.mustSighting(t, slave)
		if s.Slave != slave || !s.AskedAt.Equal(asked) || s.AskedERTS != erts || s.Answered || s.Refusal != "not in the whitelist" {
			t.Errorf("after a refusal: %+v", s)
		}
		advance(time.Second)
		f.Discovered(netip.AddrFrom16(slave.As16()), "14", "")
		s = f.mustSighting(t, slave)
		if !s.AskedAt.Equal(asked.Add(time.Second)) || s.AskedERTS != "14" || !s.Answered || s.Refusal != "" {
			t.Errorf("after an answer: %+v", s)
		}

		one, two := f.Connect(slave, erts), f.Connect(slave, erts)
		one.Requested("get", script)
		one.Uncovered([]byte("/etc/passwd"))
		one.Sent(1)
		advance(time.Second)
		two.Requested("get_cwd", nil)
		two.Sent(1)
		s = f.mustSighting(t, slave)
		if s.Connections != 2 || s.LatestRequest != "get_cwd" || s.UncoveredPath != "/etc/passwd" || !s.LatestAt.Equal(time.Now()) {
			t.Errorf("with connections: %+v", s)
		}
		two.Closed(true)
		advance(time.Second)
		one.Requested("list_dir", []byte("/x"))
		one.Uncovered([]byte("/x"))
		one.Closed(true)
		s = f.mustSighting(t, slave)
		if s.Connections != 0 || s.LatestRequest != "list_dir /x" || s.UncoveredPath != "/x" || !s.LatestAt.Equal(time.Now()) {
			t.Errorf("after all closed: %+v", s)
		}
	})
}

func TestRemoteTextIsTamed(t *testing.T) {
	f := open(t, Options{})
	f.Discovered(slave, "13\x1b[2J"+strings.Repeat("x", 100), strings.Repeat("é", 1000))
	c := f.Connect(slave, erts)
	defer c.Closed(true)
	for _, name := range []string{
		strings.Repeat("ü", 1000), "x" + strings.Repeat("ü", 1000), "\xff\xfe\x1b[31m\n", strings.Repeat("\xff", 300), "", strings.Repeat("€", 90),
	} {
		c.Requested("get", []byte(name))
		c.Uncovered([]byte(name))
		s := f.mustSighting(t, slave)
		for what, text := range map[string]string{"request": s.LatestRequest, "path": s.UncoveredPath, "refusal": s.Refusal, "ERTS": s.AskedERTS} {
			if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\n") {
				t.Errorf("%q gives %s %q of %d bytes", name, what, text, len(text))
			}
		}
		if !strings.HasPrefix(s.LatestRequest, "get") {
			t.Errorf("request %q", s.LatestRequest)
		}
	}
	if s := f.mustSighting(t, slave); len(s.AskedERTS) > maxERTS || s.LatestRequest != "get "+strings.Repeat("€", 84) {
		t.Errorf("%+v", s)
	}
}

func TestAddressesAreBounded(t *testing.T) {
	numbered := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}) }
	f := open(t, Options{Addresses: 10, Finished: 100})
	connected := f.Connect(slave, erts)
	boots(connected)
	former := f.Connect(other, erts)
	boots(former)
	former.Closed(true)
	f.Discovered(numbered(60000), erts, "") // answered: not a stranger
	for i := range 1000 {
		f.Discovered(numbered(i), erts, "not in the whitelist")
	}
	if n := f.Stats().Addresses; n != 10 {
		t.Errorf("%d addresses, want 10", n)
	}
	for i, want := range map[int]bool{0: false, 992: false, 993: true, 999: true, 60000: true} {
		if _, known := f.Sighting(numbered(i)); known != want {
			t.Errorf("address %d known: %t, want %t", i, known, want)
		}
	}
	f.mustSighting(t, slave) // a flood of strangers forgets no slave
	f.mustSighting(t, other)

	for i := range 1000 {
		f.Discovered(numbered(i), erts, "")
	}
	f.mustSighting(t, slave)
	if _, known := f.Sighting(other); known {
		t.Error("the slave seen longest ago is still known")
	}
	if len(f.Boots()) != 1 || f.Stats().Finished != 0 {
		t.Errorf("boots of forgotten slaves stay: %+v", f.Boots())
	}
	connected.Closed(true)
	if s := f.Stats(); s.Addresses != 10 || s.Connections != 0 || s.Finished != 1 {
		t.Errorf("%+v", s)
	}
}

func TestFinishedBootsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Finished: 6, FinishedEach: 4})
		boot := func(a netip.Addr, n int) {
			for range n {
				c := f.Connect(a, erts)
				boots(c)
				c.Closed(true)
				advance(time.Millisecond)
			}
		}
		boot(slave, 10)
		if got := f.BootsOf(slave); len(got) != 4 || !got[0].Began.After(got[3].Began) {
			t.Errorf("boots of one: %+v", got)
		}
		boot(other, 10)
		if len(f.BootsOf(other)) != 4 || len(f.BootsOf(slave)) != 2 || len(f.Boots()) != 6 || f.Stats().Finished != 6 {
			t.Errorf("%d and %d boots, %d in all", len(f.BootsOf(other)), len(f.BootsOf(slave)), len(f.Boots()))
		}
		if f.Stats().Begun != 20 {
			t.Errorf("%d begun", f.Stats().Begun)
		}
	})
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Followers: 2})
		stop := run(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		changes := f.Follow(ctx)
		other := f.Follow(t.Context())
		if _, open := <-f.Follow(t.Context()); open {
			t.Error("a third follower of two was let in")
		}

		c := f.Connect(slave, erts)
		boots(c)
		advance(2 * time.Second)
		c.Closed(true)
		for _, phase := range []eboot.BootPhase{eboot.BootLoading, eboot.BootQuiet, eboot.BootClosed} {
			if b := <-changes; b.Phase != phase || b.Slave != slave || b.Lost != 0 {
				t.Errorf("%+v, want phase %s", b, phase)
			}
		}
		cancel()
		if _, open := <-changes; open {
			t.Error("the channel is open after its context ended")
		}
		if len(other) != 3 {
			t.Errorf("the other follower has %d changes", len(other))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for range other { // closed by the end of Run
			n++
		}
		if n != 3 {
			t.Errorf("the other follower got %d changes", n)
		}
		if _, open := <-f.Follow(t.Context()); open {
			t.Error("a follower was let in after Run")
		}
	})
}

// A follower that does not read loses changes and is told how many; in the end it
// knows how the latest boot stands.
func TestFollowSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		changes := f.Follow(t.Context())
		const each = followBuffer
		var c *Connection
		for i := range each { // two changes each: half of them are lost
			c = f.Connect(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), erts)
			boots(c)
			c.Closed(true)
		}
		var got, lost int64
		var latest eboot.Boot
		for range followBuffer {
			latest = <-changes
			got, lost = got+1, lost+latest.Lost
		}
		if lost != 0 {
			t.Errorf("told of %d lost changes too early", lost)
		}
		latest = <-changes // nothing else happens: Run tells
		got, lost = got+1, lost+latest.Lost
		if got+lost != 2*each || latest.Phase != eboot.BootClosed || latest.Slave != c.slave {
			t.Errorf("%d changes and %d lost of %d; latest %+v", got, lost, 2*each, latest)
		}
		synctest.Wait()
		if len(changes) != 0 {
			t.Errorf("%d changes more", len(changes))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Run sleeps while nothing loads: however many slaves are idle, it does not wake.
func TestRunSleepsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		f := open(t, Options{Now: func() time.Time { asked++; return time.Now() }})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		defer c.Closed(true)
		boots(c)
		advance(10 * time.Second)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootQuiet {
			t.Fatalf("%+v", b)
		}
		before := asked
		advance(time.Hour)
		synctest.Wait()
		if asked != before {
			t.Errorf("Run looked at the clock %d times in an idle hour", asked-before)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Everything at once, for the race detector; in the end the sums are right.
func TestConcurrent(t *testing.T) {
	f := open(t, Options{PinFile: t.TempDir() + "/pins", Addresses: 50, Finished: 30, FinishedEach: 3})
	stop := run(t, f)
	const workers, rounds = 8, 200
	ended := make(chan struct{})
	for w := range workers {
		go func() {
			defer func() { ended <- struct{}{} }()
			for i := range rounds {
				a := netip.AddrFrom4([4]byte{10, 0, 0, byte((w*rounds + i) % 70)})
				f.Discovered(a, erts, fmt.Sprint(i%2))
				c := f.Connect(a, erts)
				if i%3 > 0 {
					boots(c)
				}
				loads(c)
				f.Sighting(a)
				f.Pin(a, erts)
				if i%20 == 0 {
					ctx, cancel := context.WithCancel(t.Context())
					f.Follow(ctx)
					f.Boots()
					f.Pins()
					cancel()
				}
				c.Closed(true)
			}
		}()
	}
	for range workers {
		<-ended
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s := f.Stats()
	if s.Connections != 0 || s.Loading != 0 || s.Addresses > 50 || s.Finished > 30 || len(f.Boots()) != s.Finished {
		t.Errorf("%+v with %d boots", s, len(f.Boots()))
	}
	if want := uint64(workers * (rounds - (rounds+2)/3)); s.Begun != want {
		t.Errorf("%d boots begun, want %d", s.Begun, want)
	}
}

func BenchmarkRequest(b *testing.B) {
	f, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	c := f.Connect(slave, erts)
	boots(c)
	b.ReportAllocs()
	for b.Loop() {
		c.Requested("get", module)
		c.Sent(1000)
	}
}

func BenchmarkRequestParallel(b *testing.B) {
	f, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c := f.Connect(slave, erts)
		boots(c)
		for pb.Next() {
			c.Requested("get", module)
			c.Sent(1000)
		}
	})
}

func BenchmarkDiscovered(b *testing.B) {
	f, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() { // a flood of strangers over a full table
		i++
		f.Discovered(netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}), erts, "not in the whitelist")
	}
}
