package fleet

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"eboot"
)

func digest(s string) eboot.Digest { return eboot.DigestOf([]byte(s)) }

func samePins(a, b []eboot.Pin) bool {
	return slices.EqualFunc(a, b, func(a, b eboot.Pin) bool {
		return a.Slave == b.Slave && a.ERTS == b.ERTS && a.Manifest == b.Manifest && a.At.Equal(b.At)
	})
}

func TestPinsSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pins")
		f := open(t, Options{PinFile: path})
		stop := run(t, f)
		if _, known := f.Pin(slave, erts); known {
			t.Error("a pin from nowhere")
		}
		first := time.Now()
		c := f.Connect(slave, erts)
		boots(c)
		c.Closed(true)
		p, known := f.Pin(netip.AddrFrom16(slave.As16()), erts)
		if !known || p.Manifest != bundle.Manifest || !p.At.Equal(first) || p.Slave != slave {
			t.Errorf("%+v, %t", p, known)
		}
		if _, known := f.Pin(slave, "14"); known {
			t.Error("pinned for another ERTS version")
		}

		advance(writeAfter - time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("written before its time: %v", err)
		}
		advance(2 * time.Millisecond)
		synctest.Wait()
		written := open(t, Options{PinFile: path}).Pins()
		if !samePins(written, f.Pins()) || len(written) != 1 {
			t.Errorf("on disk: %+v", written)
		}

		newer := bundle
		newer.Manifest = digest("newer")
		c = f.Connect(slave, erts)
		c.BootBegan("stable", newer, "")
		c.Closed(true)
		c = f.Connect(other, erts)
		boots(c)
		c.Closed(true)
		if err := stop(); err != nil { // writes at once
			t.Fatal(err)
		}
		written = open(t, Options{PinFile: path}).Pins()
		if !samePins(written, f.Pins()) || len(written) != 2 || written[0].Manifest != newer.Manifest {
			t.Errorf("on disk at the end: %+v", written)
		}
	})
}

func TestPinsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	f := open(t, Options{PinFile: path, Pins: 3})
	pin := func(a netip.Addr) {
		c := f.Connect(a, erts)
		boots(c)
		c.Closed(true)
	}
	a := []netip.Addr{}
	for i := range 5 {
		a = append(a, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	pin(a[0])
	pin(a[1])
	pin(a[2])
	f.Pin(a[0], erts) // used
	pin(a[3])
	pin(a[4])
	stop := run(t, f)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	again := open(t, Options{PinFile: path, Pins: 2}) // keeps the latest used
	for i, want := range []bool{true, false, false, true, true} {
		if _, known := f.Pin(a[i], erts); known != want {
			t.Errorf("pin %d known: %t", i, known)
		}
		if _, known := again.Pin(a[i], erts); known != (i > 2) {
			t.Errorf("pin %d known after a restart: %t", i, known)
		}
	}
}

func TestUnreadableBootIsNotPinned(t *testing.T) {
	f := open(t, Options{})
	c := f.Connect(netip.MustParseAddr("::1"), erts)
	if p := c.BootBegan("stable", bundle, ""); p != (eboot.Pin{}) {
		t.Errorf("%+v", p)
	}
	c.Closed(true)
	c = f.Connect(slave, "no version")
	boots(c)
	c.Closed(true)
	if pins := f.Pins(); len(pins) != 0 {
		t.Errorf("%+v", pins)
	}
}

func pinOf(a netip.Addr, content string, at time.Time) eboot.Pin {
	return eboot.Pin{Slave: a, ERTS: erts, Manifest: digest(content), At: at}
}

// greater returns two contents, the one with the greater digest first.
func greater(a, b string) (string, string) {
	x, y := digest(a), digest(b)
	if bytes.Compare(x[:], y[:]) > 0 {
		return a, b
	}
	return b, a
}

func TestMergePins(t *testing.T) {
	f := open(t, Options{})
	at := time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC)
	great, small := greater("one", "two")
	for _, step := range []struct {
		name    string
		pin     eboot.Pin
		changed int
		want    eboot.Pin
	}{
		{"unknown slave", pinOf(slave, small, at), 1, pinOf(slave, small, at)},
		{"again", pinOf(slave, small, at), 0, pinOf(slave, small, at)},
		{"again in another zone", pinOf(slave, small, at.In(time.FixedZone("", 3600))), 0, pinOf(slave, small, at)},
		{"earlier", pinOf(slave, great, at.Add(-1)), 0, pinOf(slave, small, at)},
		{"same time, greater digest", pinOf(slave, great, at), 1, pinOf(slave, great, at)},
		{"same time, smaller digest", pinOf(slave, small, at), 0, pinOf(slave, great, at)},
		{"later, smaller digest", pinOf(slave, small, at.Add(1)), 1, pinOf(slave, small, at.Add(1))},
		{"IPv4 in IPv6", pinOf(netip.AddrFrom16(slave.As16()), great, at.Add(2)), 1, pinOf(slave, great, at.Add(2))},
		{"no pin", eboot.Pin{}, 0, pinOf(slave, great, at.Add(2))},
		{"IPv6", pinOf(netip.MustParseAddr("::1"), great, at.Add(3)), 0, pinOf(slave, great, at.Add(2))},
		{"no manifest", eboot.Pin{Slave: slave, ERTS: erts, At: at.Add(3)}, 0, pinOf(slave, great, at.Add(2))},
		{"no version", eboot.Pin{Slave: slave, Manifest: digest(great), At: at.Add(3)}, 0, pinOf(slave, great, at.Add(2))},
		{"a time that JSON has not", pinOf(slave, great, at.AddDate(9000, 0, 0)), 0, pinOf(slave, great, at.Add(2))},
	} {
		changed := f.MergePins([]eboot.Pin{step.pin})
		if pins := f.Pins(); changed != step.changed || len(pins) != 1 || pins[0] != step.want {
			t.Fatalf("%s: changed %d: %+v, want %d: %+v", step.name, changed, pins, step.changed, step.want)
		}
	}
	elsewhere := pinOf(slave, "other", at)
	elsewhere.ERTS = "14.0"
	if changed := f.MergePins([]eboot.Pin{elsewhere, pinOf(other, "one", at), elsewhere}); changed != 2 || len(f.Pins()) != 3 {
		t.Errorf("changed %d: %+v", changed, f.Pins())
	}
}

// A slave that boots here has a later pin than before, wherever that came from and
// whatever the clock here says, or other servers would not take it.
func TestBootSupersedesItsPin(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	f := open(t, Options{Now: func() time.Time { return now }})
	peer := open(t, Options{})
	ahead := pinOf(slave, "elsewhere", now.Add(time.Hour))
	f.MergePins([]eboot.Pin{ahead})
	peer.MergePins([]eboot.Pin{ahead})
	c := f.Connect(slave, erts)
	defer c.Closed(true)
	for _, at := range []time.Time{ahead.At.Add(1), ahead.At.Add(2)} {
		c.Requested("get", script)
		p := c.BootBegan("stable", bundle, "")
		if want := (eboot.Pin{Slave: slave, ERTS: erts, Manifest: bundle.Manifest, At: at}); p != want {
			t.Errorf("pinned %+v, want %+v", p, want)
		}
		if known, _ := f.Pin(slave, erts); known != p {
			t.Errorf("returned %+v, known %+v", p, known)
		}
		if peer.MergePins([]eboot.Pin{p}) != 1 {
			t.Errorf("the peer did not take %+v", p)
		}
	}
	if b := f.BootsOf(slave)[0]; !b.Began.Equal(now) {
		t.Errorf("the boot began %s, not by this clock", b.Began)
	}
	now = ahead.At.Add(time.Hour)
	c.Requested("get", script)
	if p := c.BootBegan("stable", bundle, ""); !p.At.Equal(now) {
		t.Errorf("pinned at %s", p.At)
	}
}

// A pin compares by the time that is sent, not by the monotonic clock of this process.
func TestPinHasNoMonotonicTime(t *testing.T) {
	f := open(t, Options{})
	c := f.Connect(slave, erts)
	defer c.Closed(true)
	if p := c.BootBegan("stable", bundle, ""); p.At.IsZero() || p.At != p.At.Round(0).UTC() {
		t.Errorf("%#v", p.At)
	}
}

func TestMergedPinsSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pins")
		f := open(t, Options{PinFile: path})
		stop := run(t, f)
		synctest.Wait() // Run sleeps
		pins := []eboot.Pin{pinOf(slave, "one", time.Now().Add(time.Hour)), pinOf(other, "two", time.Now())}
		if changed := f.MergePins(pins); changed != 2 {
			t.Fatalf("changed %d", changed)
		}
		advance(writeAfter + time.Millisecond)
		synctest.Wait()
		if written := open(t, Options{PinFile: path}).Pins(); !samePins(written, pins) {
			t.Errorf("on disk: %+v", written)
		}
		again := open(t, Options{PinFile: path})
		if changed := again.MergePins(pins); changed != 0 {
			t.Errorf("known pins changed %d", changed)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Servers with full tables come to rest, and the pins of boots here are entered all the same.
func TestMergedPinsAreBounded(t *testing.T) {
	const limit = 50
	start := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	now := start
	clock := func() time.Time { return now }
	a, b := open(t, Options{Pins: limit, Now: clock}), open(t, Options{Pins: limit, Now: clock})
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range 2 * limit { // by turns, so that each has old and new ones
		f := a
		if i%2 == 1 {
			f = b
		}
		now = start.Add(time.Duration(i) * time.Second)
		c := f.Connect(address(i), erts)
		boots(c)
		c.Closed(true)
	}
	rounds := 0
	for a.MergePins(b.Pins())+b.MergePins(a.Pins()) > 0 {
		if rounds++; rounds > 10 {
			t.Fatal("pins go to and fro")
		}
	}
	if n, m := len(a.Pins()), len(b.Pins()); n != limit || m != limit || !samePins(a.Pins(), b.Pins()) {
		t.Errorf("%d and %d pins", n, m)
	}
	if _, known := a.Pin(address(2*limit-1), erts); !known {
		t.Error("the latest pin of the other is not known")
	}
	now = start.Add(-time.Hour)
	c := a.Connect(slave, erts)
	boots(c)
	c.Closed(true)
	if _, known := a.Pin(slave, erts); !known || len(a.Pins()) != limit {
		t.Errorf("a boot here is not pinned when the table is full of later ones: %d", len(a.Pins()))
	}
}

// Servers that exchange their pins in any order, and boot slaves meanwhile, come to know the same.
func TestPinsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var fleets [3]*Fleet
		for i := range fleets {
			skew := time.Duration(rapid.IntRange(-2, 2).Draw(t, "skew"))
			ticks := 0
			f, err := New(Options{Now: func() time.Time { ticks++; return time.Unix(1000, 0).Add(skew + time.Duration(ticks/2)) }})
			if err != nil {
				t.Fatal(err)
			}
			fleets[i] = f
		}
		newest := map[netip.Addr]eboot.Pin{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			f := fleets[rapid.IntRange(0, 2).Draw(t, "server")]
			if rapid.Bool().Draw(t, "exchange") {
				f.MergePins(fleets[rapid.IntRange(0, 2).Draw(t, "from")].Pins())
				continue
			}
			who := rapid.SampledFrom([]netip.Addr{slave, other}).Draw(t, "slave")
			old, _ := f.Pin(who, erts)
			b := bundle
			b.Manifest = digest(rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "content"))
			c := f.Connect(who, erts)
			p := c.BootBegan("stable", b, "")
			c.Closed(true)
			if !p.At.After(old.At) {
				t.Fatalf("%+v is not later than %+v", p, old)
			}
			if supersedes(p, newest[who]) {
				newest[who] = p
			}
		}
		for range 2 {
			for i, f := range fleets {
				f.MergePins(fleets[(i+1)%3].Pins())
				f.MergePins(fleets[(i+2)%3].Pins())
			}
		}
		for _, f := range fleets {
			for who, want := range newest {
				if p, _ := f.Pin(who, erts); p != want {
					t.Fatalf("%+v, want %+v", p, want)
				}
			}
		}
	})
}

func TestDamagedPinFile(t *testing.T) {
	var good bytes.Buffer
	if err := encodePins(&good, []eboot.Pin{{Slave: slave, ERTS: erts, Manifest: digest("a"), At: time.Unix(1, 0)}}); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good.Bytes())
	flipped[good.Len()-60] ^= 1
	for name, content := range map[string]string{
		"empty": "", "rubbish": "rubbish\n", "cut": good.String()[:good.Len()-1], "header only": strings.SplitAfter(good.String(), "\n")[0],
		"one bit": string(flipped), "more": good.String() + "{}\n", "long": strings.Repeat("x", 100),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pins")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := open(t, Options{PinFile: path})
			if pins := f.Pins(); len(pins) != 0 {
				t.Errorf("pins of a damaged file: %+v", pins)
			}
			kept, err := os.ReadFile(path + ".damaged")
			if err != nil || string(kept) != content {
				t.Errorf("kept aside: %q, %v", kept, err)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged file is still there: %v", err)
			}
		})
	}
}

func TestPinFileThatCannotBeUsed(t *testing.T) {
	directory := t.TempDir()
	if _, err := New(Options{PinFile: directory}); err == nil {
		t.Error("a directory was taken for a pin file")
	}

	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(directory, "none", "pins")
		f := open(t, Options{PinFile: path})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		boots(c)
		advance(writeAfter + time.Millisecond)
		synctest.Wait() // the write failed
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		advance(retryAfter + time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(path); err != nil {
			t.Errorf("not written when it became possible: %v", err)
		}
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		boots(c)
		c.Closed(true)
		if err := stop(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the last write failed, but Run says %v", err)
		}
	})
}

// header is the first line of a file of format whose other lines are body.
func header(format string, body []byte) string {
	return `{"format":"` + format + `","sha256":"` + eboot.DigestOf(body).String() + "\"}\n"
}

// The files of the releases so far.
func TestPinFileStays(t *testing.T) {
	const content = `{"format":"eboot pins 1","pins":1,"sha256":"SHA256"}
{"slave":"10.1.2.3","erts":"13.1.5","manifest":"62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a","at":"2024-05-06T07:08:09.00000001Z"}
`
	_, body, _ := strings.Cut(content, "\n")
	file := strings.Replace(content, "SHA256", digest(body).String(), 1)
	want := []eboot.Pin{pinOf(slave, "m", time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC))}
	pins, err := decodePins([]byte(file))
	if err != nil || !samePins(pins, want) {
		t.Errorf("%+v, %v", pins, err)
	}
	var out bytes.Buffer
	if err := encodePins(&out, want); err != nil || out.String() != file {
		t.Errorf("written: %s, %v", out.String(), err)
	}
}

// A file gives pins that are written the same way again, or ErrDamaged.
func FuzzPins(f *testing.F) {
	var some bytes.Buffer
	if err := encodePins(&some, []eboot.Pin{
		{Slave: slave, ERTS: erts, Manifest: digest("a"), At: time.Unix(1, 5).UTC()},
		{Slave: other, ERTS: "15.0-rc1", Manifest: digest("b")},
	}); err != nil {
		f.Fatal(err)
	}
	f.Add(some.Bytes(), true)
	f.Add([]byte(`{"slave":"10.1.2.3","erts":"13.1.5","manifest":"`+digest("a").String()+`","at":"9999-12-31T23:59:59-12:00"}`+"\n"), false)
	f.Add([]byte(`{"slave":"::1","erts":"","manifest":"","at":"0001-01-01T00:00:00Z"}`+"\n"), false)
	f.Add([]byte("null\n"), false)
	f.Fuzz(func(t *testing.T, content []byte, whole bool) {
		if !whole { // past the digest, which hides the lines from the fuzzer
			content = append([]byte(header(pinFormat, content)), content...)
		}
		pins, err := decodePins(content)
		if err != nil {
			if !errors.Is(err, eboot.ErrDamaged) {
				t.Fatalf("error %v does not wrap ErrDamaged", err)
			}
			return
		}
		var out bytes.Buffer
		if err := encodePins(&out, pins); err != nil {
			t.Fatal(err)
		}
		back, err := decodePins(out.Bytes())
		if err != nil || !samePins(pins, back) {
			t.Fatalf("%+v and back %+v: %v", pins, back, err)
		}
	})
}
