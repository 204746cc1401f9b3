package fleet

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
		c.Closed()
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
		c.BootBegan("stable", newer)
		c.Closed()
		c = f.Connect(other, erts)
		boots(c)
		c.Closed()
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
		c.Closed()
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
	boots(c)
	c.Closed()
	c = f.Connect(slave, "no version")
	boots(c)
	c.Closed()
	if pins := f.Pins(); len(pins) != 0 {
		t.Errorf("%+v", pins)
	}
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
		c.Closed()
		if err := stop(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the last write failed, but Run says %v", err)
		}
	})
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
	f.Add([]byte(`{"slave":"::1","erts":"","manifest":"","at":"0001-01-01T00:00:00Z"}`+"\n"), false)
	f.Add([]byte("null\n"), false)
	f.Fuzz(func(t *testing.T, content []byte, whole bool) {
		if !whole { // past the digest, which hides the lines from the fuzzer
			header := `{"format":"` + pinFormat + `","pins":` + strconv.Itoa(bytes.Count(content, []byte{'\n'})) + `,"sha256":"` + eboot.DigestOf(content).String() + "\"}\n"
			content = append([]byte(header), content...)
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
