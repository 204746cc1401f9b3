package ingest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"eboot"
)

func TestArchivesRefused(t *testing.T) {
	nested := func(name string, entries ...entry) []entry {
		return good(
			entry{name: "releases/1.0/used.boot", body: script("$EXT/x-1/ebin")},
			entry{name: name, body: string(gzipped(t, makeTar(t, entries...)))})
	}
	small := Limits{Entries: 12, FileSize: 1000, TreeBytes: 3000}
	for _, c := range []struct {
		name    string
		entries []entry
		opts    Options
		want    error
		texts   []string
	}{
		{"ErrAbsolute", good(entry{name: "/etc/passwd"}), Options{}, eboot.ErrInvalid, []string{`"/etc/passwd"`, "absolute"}},
		{"ErrParent", good(entry{name: "../evil"}), Options{}, eboot.ErrInvalid, []string{`"../evil"`, `".."`}},
		{"ErrParentInside", good(entry{name: "lib/../lib/b"}), Options{}, eboot.ErrInvalid, []string{`"lib/../lib/b"`}},
		{"ErrParentLast", good(dirEntry("lib/..")), Options{}, eboot.ErrInvalid, []string{"lib/.."}},
		{"ErrParentAfterDot", good(entry{name: "./../x"}), Options{}, eboot.ErrInvalid, []string{"./../x"}},
		{"ErrNotUTF8", good(entry{name: "lib/\xff"}), Options{}, eboot.ErrInvalid, []string{`lib/\xff`, "UTF-8"}},
		{"ErrLongName", good(entry{name: strings.Repeat("abcdefg/", 600) + "x"}), Options{}, eboot.ErrTooLarge, []string{"abcdefg/"}},
		{"ErrTwice", good(entry{name: "lib/a", body: "other"}), Options{}, eboot.ErrInvalid, []string{`"lib/a"`, "twice"}},
		{"ErrTwiceOtherSpelling", good(entry{name: "./lib//a", body: "other"}), Options{}, eboot.ErrInvalid, []string{`"lib/a"`, "twice"}},
		{"ErrFileThenDirectory", good(dirEntry("lib/a/")), Options{}, eboot.ErrInvalid, []string{`"lib/a"`}},
		{"ErrDirectoryThenFile", good(entry{name: "lib"}), Options{}, eboot.ErrInvalid, []string{`"lib"`, "twice"}},
		{"ErrBelowFile", good(entry{name: "lib/a/b/c"}), Options{}, eboot.ErrInvalid, []string{`"lib/a/b/c"`, `below "lib/a"`, "file"}},
		{"ErrBelowLink", good(link("l", "lib"), entry{name: "l/b"}), Options{}, eboot.ErrInvalid, []string{`"l/b"`, "symlink"}},
		{"ErrLinkOverDirectory", good(link("lib", "releases")), Options{}, eboot.ErrInvalid, []string{`"lib"`}},
		{"ErrAbsoluteLink", good(link("lib/l", "/etc/passwd")), Options{Dereference: true}, eboot.ErrInvalid, []string{`"lib/l"`, "/etc/passwd", "--dereference cannot help"}},
		{"ErrLeavingLink", good(link("lib/l", "../../x")), Options{}, eboot.ErrInvalid, []string{`"lib/l"`, "../../x", "--dereference cannot help"}},
		{"ErrLeavingLinkDereferenced", good(link("lib/l", "../../x")), Options{Dereference: true}, eboot.ErrInvalid, []string{`"lib/l"`}},
		{"ErrLeavingThroughLink", good(link("lib/up", ".."), link("lib/l", "up/../x")), Options{}, eboot.ErrInvalid, []string{`"lib/l"`}},
		{"ErrLeavingThroughMissing", good(link("lib/l", "nothing/../../../etc")), Options{}, eboot.ErrInvalid, []string{`"lib/l"`}},
		{"ErrDevice", good(typed("dev/sda", tar.TypeBlock)), Options{}, eboot.ErrInvalid, []string{`"dev/sda"`, "device"}},
		{"ErrCharDevice", good(typed("dev/null", tar.TypeChar)), Options{}, eboot.ErrInvalid, []string{`"dev/null"`, "device"}},
		{"ErrPipe", good(typed("pipe", tar.TypeFifo)), Options{}, eboot.ErrInvalid, []string{`"pipe"`, "named pipe"}},
		{"ErrUnknownType", good(typed("odd", 'V')), Options{}, eboot.ErrInvalid, []string{`"odd"`, "'V'"}},
		{"ErrHardLinkForward", append([]entry{hardLink("b", "lib/a")}, good()...), Options{}, eboot.ErrInvalid, []string{`"b"`, `"lib/a"`}},
		{"ErrHardLinkToLink", good(link("l", "lib/a"), hardLink("b", "l")), Options{}, eboot.ErrInvalid, []string{`"b"`}},
		{"ErrHardLinkToDirectory", good(hardLink("b", "lib")), Options{}, eboot.ErrInvalid, []string{`"b"`}},
		{"ErrHardLinkOutside", good(hardLink("b", "../../etc/passwd")), Options{}, eboot.ErrInvalid, []string{`"b"`, ".."}},
		{"ErrHardLinkAbsolute", good(hardLink("b", "/etc/passwd")), Options{}, eboot.ErrInvalid, []string{`"b"`, "absolute"}},
		{"ErrHardLinkToSecret", good(entry{name: "releases/COOKIE", body: "s"}, hardLink("b", "releases/COOKIE")), Options{}, eboot.ErrInvalid, []string{`"b"`}},
		{"ErrFileSize", good(entry{name: "big", body: strings.Repeat("x", 1001)}), Options{Limits: small}, eboot.ErrTooLarge, []string{`"big"`, "1001 bytes"}},
		{"ErrTreeBytes", good(entry{name: "1", body: strings.Repeat("x", 999)}, entry{name: "2", body: strings.Repeat("x", 999)}, entry{name: "3", body: strings.Repeat("x", 999)}),
			Options{Limits: small}, eboot.ErrTooLarge, []string{`"3"`, "3000 bytes"}},
		{"ErrEntries", good(entry{name: "1/2/3/4/5/6/7/8/9"}), Options{Limits: small}, eboot.ErrTooLarge, []string{"more than 12 entries"}},
		{"ErrRepeatedDirectories", good(repeat(dirEntry("d"), 30)...), Options{Limits: small}, eboot.ErrTooLarge, []string{`"d"`, "12 entries"}},
		{"ErrNestedParent", nested("EXT.tar.gz", entry{name: "../evil"}), Options{Boot: "releases/1.0/used"}, eboot.ErrInvalid, []string{`"EXT.tar.gz"`, `"../evil"`}},
		{"ErrNestedDevice", nested("EXT.tar.gz", typed("sda", tar.TypeBlock)), Options{Boot: "releases/1.0/used"}, eboot.ErrInvalid, []string{`"EXT.tar.gz"`, `"sda"`}},
		{"ErrNestedLeavingLink", nested("EXT.tar.gz", link("l", "../x")), Options{Boot: "releases/1.0/used"}, eboot.ErrInvalid, []string{`"l"`, "out of the tree"}},
		{"ErrNestedTwice", nested("EXT.tar.gz", entry{name: "lib/a", body: "other"}), Options{Boot: "releases/1.0/used"}, eboot.ErrInvalid, []string{`"EXT.tar.gz"`, `"lib/a"`, "twice"}},
		{"ErrNestedFileSize", nested("EXT.tar.gz", entry{name: "x", body: strings.Repeat("x", 1001)}), Options{Boot: "releases/1.0/used", Limits: small}, eboot.ErrTooLarge, []string{`"EXT.tar.gz"`, `"x"`}},
		{"ErrNestedEntries", nested("EXT.tar.gz", entry{name: "1/2/3/4/5/6/7/8"}), Options{Boot: "releases/1.0/used", Limits: small}, eboot.ErrTooLarge, []string{`"EXT.tar.gz"`, "12 entries"}},
		{"ErrNestedNoArchive", good(entry{name: "releases/1.0/used.boot", body: script("$EXT/x")}, entry{name: "EXT.tar.gz", body: "no archive"}),
			Options{Boot: "releases/1.0/used"}, eboot.ErrInvalid, []string{`"EXT.tar.gz"`, "is not a tar"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := makeTar(t, c.entries...)
			for _, packed := range [][]byte{data, gzipped(t, data), zstdFrame(t, data)} {
				s, err := openBytes(t.Context(), packed, c.opts)
				wantError(t, err, c.want, c.texts...)
				if s != nil {
					t.Error("there is a source, which could be published")
				}
			}
		})
	}
}

func repeat(e entry, n int) []entry {
	all := make([]entry, n)
	for i := range all {
		all[i] = e
	}
	return all
}

func TestBrokenFilesRefused(t *testing.T) {
	whole := makeTar(t, good()...)
	packed := gzipped(t, whole)
	frame := zstdFrame(t, whole)
	corrupt := bytes.Clone(packed)
	corrupt[len(corrupt)-5] ^= 1 // the checksum
	entries := whole[:len(whole)-1024]
	nul := makeTar(t, good(entry{name: "lib/nul", header: func(h *tar.Header) {
		h.PAXRecords = map[string]string{"comment": "path=lib/xnul"}
	}})...)
	nul = bytes.Replace(nul, []byte("comment=path=lib/xnul"), []byte("path=lib/with\x00nul\x00abc"), 1)
	for _, c := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"ErrEmpty", nil, eboot.ErrInvalid, "is empty"},
		{"ErrText", []byte("hello"), eboot.ErrInvalid, "is not a tar"},
		{"ErrLongText", bytes.Repeat([]byte("hello"), 1000), eboot.ErrInvalid, "is not a tar"},
		{"ErrXZ", []byte("\xfd7zXZ\x00..."), eboot.ErrInvalid, "xz"},
		{"ErrZip", []byte("PK\x03\x04..."), eboot.ErrInvalid, "zip"},
		{"ErrBzip2", []byte("BZh91AY"), eboot.ErrInvalid, "bzip2"},
		{"ErrGzipOfText", gzipped(t, bytes.Repeat([]byte("hello"), 1000)), eboot.ErrInvalid, "is not a tar"},
		{"ErrGzipOfGzip", gzipped(t, packed), eboot.ErrInvalid, "is not a tar"},
		{"ErrGzipCutOff", packed[:len(packed)-3], eboot.ErrInvalid, "cut off"},
		{"ErrGzipCutOffEarly", packed[:100], eboot.ErrInvalid, "cut off"},
		{"ErrGzipHeaderCutOff", packed[:5], eboot.ErrInvalid, "cut off"},
		{"ErrGzipChecksum", corrupt, eboot.ErrInvalid, "checksum"},
		{"ErrGzipGarbageAfter", append(bytes.Clone(packed), "garbage"...), eboot.ErrInvalid, "lib/a"},
		{"ErrZstdCutOff", frame[:len(frame)-3], eboot.ErrInvalid, "cut off"},
		{"ErrZstdGarbageAfter", append(bytes.Clone(frame), "garbage"...), eboot.ErrInvalid, "lib/a"},
		{"ErrZstdWindow", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00}, eboot.ErrInvalid, "window"},
		{"ErrTarCutOffInContent", entries[:len(entries)-510], eboot.ErrInvalid, "cut off"},
		{"ErrTarCutOffInPadding", entries[:len(entries)-100], eboot.ErrInvalid, "cut off"},
		{"ErrTarCutOffInHeader", entries[:len(entries)-1000], eboot.ErrInvalid, "cut off"},
		{"ErrTarCutOffBetweenEntries", entries, eboot.ErrInvalid, "cut off"},
		{"ErrTarCutOffAfterEntry", entries[:len(entries)-1024], eboot.ErrInvalid, "cut off"},
		{"ErrTarGarbageAfter", append(bytes.Clone(whole), "garbage"...), eboot.ErrInvalid, "more data"},
		{"ErrTarTwice", append(bytes.Clone(whole), whole...), eboot.ErrInvalid, "more data"},
		{"ErrNulInName", nul, eboot.ErrInvalid, "lib/a"},
		{"ErrNoTree", makeTar(t), eboot.ErrInvalid, "no boot script"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openBytes(t.Context(), c.data, Options{})
			wantError(t, err, c.want, c.text)
		})
	}
	t.Run("OKPaddedWithZeros", func(t *testing.T) {
		if _, err := openBytes(t.Context(), append(bytes.Clone(whole), make([]byte, 10240)...), Options{}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("OKSeveralStreams", func(t *testing.T) {
		parts := append(gzipped(t, whole[:700]), gzipped(t, whole[700:])...)
		frames := append(zstdFrame(t, whole[:700]), zstdFrame(t, whole[700:])...)
		want := identity(mustOpenBytes(t, whole, Options{}))
		for _, data := range [][]byte{parts, frames} {
			if got := identity(mustOpenBytes(t, data, Options{})); got != want {
				t.Errorf("got tree %s, want %s", got, want)
			}
		}
	})
}

// A bomb is refused by its proportion long before it passes another limit.
func TestBombsRefused(t *testing.T) {
	zeros := strings.Repeat("\x00", 4<<20)
	limits := Limits{RatioAfter: 1 << 20}
	t.Run("ErrGzip", func(t *testing.T) {
		_, err := openBytes(t.Context(), gzipped(t, makeTar(t, good(entry{name: "zeros", body: zeros})...)), Options{Limits: limits})
		wantError(t, err, eboot.ErrTooLarge, "200 times")
	})
	t.Run("ErrZstd", func(t *testing.T) {
		_, err := openBytes(t.Context(), zstdFrame(t, makeTar(t, good(entry{name: "zeros", body: zeros})...)), Options{Limits: limits})
		wantError(t, err, eboot.ErrTooLarge, "200 times")
	})
	t.Run("ErrAfterTheEnd", func(t *testing.T) {
		_, err := openBytes(t.Context(), gzipped(t, append(makeTar(t, good()...), zeros...)), Options{Limits: limits})
		wantError(t, err, eboot.ErrTooLarge, "200 times")
	})
	t.Run("ErrNested", func(t *testing.T) {
		inner := gzipped(t, makeTar(t, entry{name: "zeros", body: zeros}))
		_, err := openBytes(t.Context(), makeTar(t, good(entry{name: "EXT.tar.gz", body: string(inner)}, entry{name: "x.boot", body: script("$EXT/x")})...),
			Options{Limits: limits, Boot: "x"})
		wantError(t, err, eboot.ErrTooLarge, "EXT.tar.gz", "200 times")
	})
	t.Run("ErrSparse", func(t *testing.T) {
		_, err := openBytes(t.Context(), sparseTar(t, 8<<20), Options{Limits: limits})
		wantError(t, err, eboot.ErrTooLarge, `"holes"`, "200 times")
	})
	t.Run("ErrSparsePAX", func(t *testing.T) {
		for _, size := range []string{"8388608", "9000000000000000000"} {
			_, err := openBytes(t.Context(), paxSparseTar(t, size), Options{Limits: limits})
			wantError(t, err, eboot.ErrTooLarge, `"holes"`)
		}
	})
	t.Run("ErrSparseMap", func(t *testing.T) { // more fragments than there are bytes for
		_, err := openBytes(t.Context(), bytes.Replace(paxSparseTar(t, "8388608"), []byte("1\n8388608\n0\n"), []byte("999999999999\n"), 1), Options{Limits: limits})
		wantError(t, err, eboot.ErrInvalid, "lib/a")
	})
	t.Run("OKBelowTheRatio", func(t *testing.T) {
		if _, err := openBytes(t.Context(), gzipped(t, makeTar(t, good(entry{name: "zeros", body: zeros})...)), Options{}); err != nil {
			t.Fatal(err)
		}
	})
}

// What a header promises is compared with the size of the archive before the
// content is read: to hash a hole takes as long as to hash a file.
func TestBombsRefusedUnread(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"ErrHole":   {Name: "holes", Typeflag: tar.TypeGNUSparse, Size: 3900 << 20},
		"ErrFile":   {Name: "zeros", Typeflag: tar.TypeReg, Size: 3900 << 20},
		"ErrVarTar": {Name: "EXT.tar.gz", Typeflag: tar.TypeReg, Size: 3900 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			limits := Limits{}.orDefault()
			s := &scan{tree: newTree(&budget{limits: limits}), size: 10 << 10, varTars: &budget{limits: limits}, hasher: newHasher(&keeper{}, "")}
			unread := iotest.ErrReader(errors.New("was read"))
			wantError(t, s.entry(t.Context(), h, unread), eboot.ErrTooLarge, h.Name, "200 times")
		})
	}
	t.Run("ErrNested", func(t *testing.T) {
		data := sparseTar(t, 3900<<20)
		n := &node{kind: eboot.KindFile, size: int64(len(data))}
		if err := readVariableTar(t.Context(), "EXT.tar.gz", n, bytes.NewReader(data), newHasher(&keeper{}, ""), &budget{limits: Limits{}.orDefault()}); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.varTar.err, eboot.ErrTooLarge, "holes", "200 times")
	})
	t.Run("OKSparse", func(t *testing.T) {
		limits := Limits{RatioAfter: 1} // the archive has 4 KiB or more
		s, err := openBytes(t.Context(), sparseTar(t, 100<<10), Options{Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		if e := s.Manifest().Find("holes"); e == nil || e.Size != 100<<10 {
			t.Errorf("got %+v", e)
		}
	})
}

// An archive may hold any number of others that may be variable tars, and all are read: what is kept
// of each is what is in it. Each once kept a buffer of 1 MiB.
func TestVariableTarsAreSmallInMemory(t *testing.T) {
	const tars = 500
	inner := string(gzipped(t, makeTar(t, entry{name: "x", body: "x"})))
	entries := good()
	for i := range tars {
		entries = append(entries, entry{name: fmt.Sprintf("V%d.tar.gz", i), body: inner})
	}
	data := makeTar(t, entries...)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := mustOpenBytes(t, data, Options{})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 20<<20 {
		t.Errorf("%d MiB are kept of %d archives of %d bytes", kept>>20, tars, len(inner))
	}
	runtime.KeepAlive(s)
}

func TestArchiveTree(t *testing.T) {
	executable := entry{name: "bin/run", body: "#!/bin/sh", header: func(h *tar.Header) { h.Mode = 0o755 }}
	notOwner := entry{name: "bin/others", body: "x", header: func(h *tar.Header) { h.Mode = 0o655 }}
	for _, c := range []struct {
		name    string
		entries []entry
		want    string // beside what good has
		notes   string
	}{
		{"OKImpliedDirectories", []entry{{name: "x/y/z", body: "z"}}, "x/\nx/y/\nx/y/z \"z\"\n", ""},
		{"OKExecutable", []entry{executable, notOwner}, "bin/\nbin/others \"x\"\nbin/run* \"#!/bin/sh\"\n", ""},
		{"OKDirectoryTwice", []entry{dirEntry("d"), dirEntry("d/")}, "d/\n", ""},
		{"OKDotNames", []entry{dirEntry("./"), {name: "./x", body: "x"}}, "x \"x\"\n", ""},
		{"OKHardLink", []entry{executable, hardLink("b", "./bin/run")}, "b* \"#!/bin/sh\"\nbin/\nbin/run* \"#!/bin/sh\"\n", ""},
		{"OKLinks", []entry{link("lib/l", "a"), link("up", "lib/../lib/l")}, "lib/l -> a\nup -> lib/../lib/l\n", ""},
		{"OKDanglingLink", []entry{link("lib/l", "nothing/here")}, "lib/l -> nothing/here\n", "nothing/here"},
		{"OKLoop", []entry{link("l", "m"), link("m", "l")}, "l -> m\nm -> l\n", "symlink l"},
		{"OKBackslash", []entry{{name: `a\..\b`, body: "x"}}, `a\..\b "x"` + "\n", ""},
		// Slaves tell these apart, and nothing is ever unpacked to a disk that does not.
		{"OKCase", []entry{{name: "lib/A", body: "x"}}, "lib/A \"x\"\n", ""},
		{"OKUnicodeForms", []entry{{name: "\u00e9", body: "composed"}, {name: "e\u0301", body: "decomposed"}}, "e\u0301 \"decomposed\"\n\u00e9 \"composed\"\n", ""},
		{"OKNewline", []entry{{name: "a\nb", body: "x"}}, "a\nb \"x\"\n", ""},
		{"OKCookie", []entry{{name: "releases/COOKIE", body: "secret"}, {name: "x/.erlang.cookie", body: "secret"}}, "x/\n", "left out releases/COOKIE"},
		{"OKCookieDirectory", []entry{{name: ".erlang.cookie/x", body: "secret"}}, "", "left out .erlang.cookie"},
		{"OKGlobalHeader", []entry{{name: "", header: func(h *tar.Header) {
			*h = tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "made by git"}}
		}}}, "", ""},
		{"OKUnusedVariableTar", []entry{{name: "EXT.tar.gz", body: "no archive"}}, "EXT.tar.gz \"no archive\"\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustOpenBytes(t, makeTar(t, good(c.entries...)...), Options{})
			base := listing(t, mustOpenBytes(t, makeTar(t, good()...), Options{}))
			if got, want := sortedLines(listing(t, s)), sortedLines(base+c.want); got != want {
				t.Errorf("got tree:\n%swant:\n%s", got, want)
			}
			if notes := strings.Join(s.Found().Notes, "\n"); !strings.Contains(notes, c.notes) {
				t.Errorf("notes %q do not say %q", notes, c.notes)
			}
			if strings.Contains(listing(t, s), "secret") {
				t.Error("a secret is in the tree")
			}
		})
	}
}

func TestArchiveTimes(t *testing.T) {
	s := mustOpenBytes(t, makeTar(t, good(
		entry{name: "old", header: func(h *tar.Header) { h.ModTime = someTime.AddDate(-100, 0, 0) }},
	)...), Options{})
	for i, e := range s.Manifest().Entries {
		want := someTime.Unix() // implied directories too
		if e.Path == "old" {
			want = 0 // 1923 has no place in a slave's calendar
		}
		if got := s.Times()[i]; got != want {
			t.Errorf("%s: got time %d, want %d", e.Path, got, want)
		}
	}
}

// One directory that holds everything is left out, also several of them, but
// not when the tree begins at the top.
func TestStrip(t *testing.T) {
	below := func(dir string, entries []entry) []entry {
		moved := make([]entry, len(entries))
		for i, e := range entries {
			moved[i] = e
			moved[i].name = dir + e.name
		}
		return moved
	}
	cookie := good(entry{name: "releases/COOKIE", body: "secret"}, link("l", "lib/a"))
	want := identity(mustOpenBytes(t, makeTar(t, cookie...), Options{}))
	for _, c := range []struct {
		name, dir, boot string
	}{
		{"OKOne", "greeter-1.0/", ""},
		{"OKSeveral", "usr/lib/erlang/", ""},
		{"OKBootInside", "greeter/", "releases/1.0/start"},
		{"OKBootWithDirectory", "greeter/", "greeter/releases/1.0/start.boot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := openBytes(t.Context(), makeTar(t, below(c.dir, cookie)...), Options{Boot: c.boot})
			if err != nil {
				t.Fatal(err)
			}
			if got := identity(s); got != want {
				t.Errorf("got tree:\n%s", listing(t, s))
			}
			if notes := strings.Join(s.Found().Notes, "\n"); !strings.Contains(notes, c.dir) {
				t.Errorf("notes %q do not name %s", notes, c.dir)
			}
		})
	}
	t.Run("ErrLinkLeavesWhatIsLeft", func(t *testing.T) {
		_, err := openBytes(t.Context(), makeTar(t, below("top/", good(link("lib/l", "../../top/lib/a")))...), Options{})
		wantError(t, err, eboot.ErrInvalid, `"lib/l"`)
	})
}

func TestVariableTars(t *testing.T) {
	inner := gzipped(t, makeTar(t,
		entry{name: "x-1/ebin/x.beam", body: "beam of x"},
		entry{name: "lib/a", body: "content of a"}, // the same as outside
		entry{name: "x-1/priv/.erlang.cookie", body: "secret"}))
	entries := []entry{
		{name: "EXT.tar.gz", body: string(inner)},
		{name: "other.tar.gz", body: string(inner)},
		{name: "releases/1.0/start.boot", body: script("$ROOT/lib", "$EXT/x-1/ebin")},
		{name: "releases/x.rel", body: "{}"},
		{name: "releases/1.0/x.rel", body: `{release, {"x","1.0"}, {erts, "13.1.5"}, []}.`},
		{name: "lib/a", body: "content of a"},
	}
	dir := t.TempDir()
	for _, e := range entries {
		writeFile(t, filepath.Join(dir, e.name), e.body)
	}
	opened := map[string]*Source{
		"Tar":       mustOpenBytes(t, makeTar(t, entries...), Options{}),
		"Gzip":      mustOpenBytes(t, gzipped(t, makeTar(t, entries...)), Options{}),
		"Directory": mustOpen(t, dir, Options{}),
	}
	for name, s := range opened {
		t.Run(name, func(t *testing.T) {
			m := s.Manifest()
			if e := m.Find("x-1/ebin/x.beam"); e == nil || m.Find("EXT.tar.gz") != nil || m.Find("other.tar.gz") == nil {
				t.Fatalf("want EXT.tar.gz merged and other.tar.gz kept, got:\n%s", listing(t, s))
			}
			if !strings.Contains(listing(t, s), `x-1/ebin/x.beam "beam of x"`) || m.Find("x-1/priv/.erlang.cookie") != nil {
				t.Errorf("got:\n%s", listing(t, s))
			}
			if got, want := identity(s), identity(opened["Tar"]); got != want {
				t.Errorf("got tree %s, want %s", got, want)
			}
			f := s.Found()
			if len(f.Variables) != 1 || f.Variables[0] != (BootVariable{Name: "EXT", Directory: "."}) {
				t.Errorf("got variables %+v, want EXT in the root", f.Variables)
			}
			if f.Layout != LayoutSystools || f.ERTS[0] != "13.1.5" {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// What is put into the blob store is what was hashed, or nothing.
func TestArchiveChangesBetweenPasses(t *testing.T) {
	before := makeTar(t, good(entry{name: "x", body: "aaaa"})...)
	for _, c := range []struct {
		name string
		data []byte
		text string
	}{
		{"ErrContent", makeTar(t, good(entry{name: "x", body: "bbbb"})...), `"x"`},
		{"ErrSize", makeTar(t, good(entry{name: "x", body: "bbbbb"})...), `"x"`},
		{"ErrName", makeTar(t, good(entry{name: "y", body: "aaaa"})...), `"x"`},
		{"ErrGone", makeTar(t, good()...), "no longer there"},
		{"ErrMore", makeTar(t, append([]entry{{name: "w", body: "x"}}, good(entry{name: "x", body: "aaaa"})...)...), "changed"},
		{"ErrNoArchive", []byte("no archive any more, but long enough to be read as a block"), "changed"},
		{"ErrCutOff", before[:len(before)-1700], "changed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "release.tar")
			writeFile(t, path, string(before))
			s := mustOpen(t, path, Options{})
			if err := os.WriteFile(path, c.data, 0o644); err != nil {
				t.Fatal(err)
			}
			err := s.Blobs(t.Context(), func(eboot.Digest) bool { return true }, func(d eboot.Digest, size int64, r io.Reader) error {
				data, err := io.ReadAll(r)
				if err == nil && eboot.DigestOf(data) != d {
					t.Errorf("other content passed as %s", d)
				}
				return err
			})
			wantError(t, err, eboot.ErrConflict, c.text)
		})
	}
}

func TestBlobs(t *testing.T) {
	s := mustOpenBytes(t, makeTar(t, good(entry{name: "1", body: "same"}, entry{name: "2", body: "same"})...), Options{})
	t.Run("OKOnlyTheWanted", func(t *testing.T) {
		asked, got := map[eboot.Digest]int{}, 0
		same := eboot.DigestOf([]byte("same"))
		err := s.Blobs(t.Context(), func(d eboot.Digest) bool { asked[d]++; return d == same }, func(d eboot.Digest, size int64, r io.Reader) error {
			got++
			if d != same || size != 4 {
				t.Errorf("got %s of %d bytes", d, size)
			}
			return nil // without reading it
		})
		if err != nil || got != 1 || len(asked) != 4 || asked[same] != 1 {
			t.Errorf("got %v, %d puts, asked %v", err, got, asked)
		}
	})
	t.Run("ErrOfPut", func(t *testing.T) {
		full := errors.New("disk is full")
		err := s.Blobs(t.Context(), func(eboot.Digest) bool { return true }, func(eboot.Digest, int64, io.Reader) error { return full })
		if !errors.Is(err, full) || errors.Is(err, eboot.ErrConflict) {
			t.Errorf("got %v, want what put returned", err)
		}
	})
	t.Run("OKNothingWanted", func(t *testing.T) {
		err := s.Blobs(t.Context(), func(eboot.Digest) bool { return false }, nil)
		if err != nil {
			t.Error(err)
		}
	})
}

func sortedLines(s string) string {
	lines := strings.SplitAfter(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}
