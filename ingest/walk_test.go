package ingest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"eboot"
)

func TestDirectoryLinks(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "o"), "outside")
	writeFile(t, filepath.Join(outside, "sub", "p"), "also outside")
	symlink(t, "sub/p", filepath.Join(outside, "q"))
	symlink(t, "/nowhere/at/all", filepath.Join(outside, "dangling"))
	symlink(t, ".", filepath.Join(outside, "self"))
	base := listing(t, mustOpen(t, goodDirectory(t), Options{}))
	for _, c := range []struct {
		name        string
		links       map[string]string // DIR stands for the tree, OUT for what is outside
		dereference bool
		want        string // beside what the tree has; empty: an error that names every text
		texts       []string
	}{
		{"OKInside", map[string]string{"l": "lib/a", "lib/up": "../releases"}, false, "l -> lib/a\nlib/up -> ../releases\n", nil},
		{"OKAbsoluteInside", map[string]string{"x/l": "DIR/lib/a", "r": "DIR"}, false, "r -> .\nx/\nx/l -> ../lib/a\n", nil},
		{"OKDangling", map[string]string{"l": "nothing"}, false, "l -> nothing\n", []string{"symlink l: nothing stands at nothing"}},
		{"ErrOutside", map[string]string{"lib/l": "OUT/o"}, false, "", []string{`"lib/l"`, "/o", "--dereference"}},
		{"ErrRelativeOutside", map[string]string{"lib/l": "../../x"}, false, "", []string{`"lib/l"`, `"../../x"`, "--dereference"}},
		{"ErrDanglingOutside", map[string]string{"l": "/nowhere/at/all"}, false, "", []string{`"l"`, "/nowhere/at/all"}},
		{"ErrOutsideThroughLink", map[string]string{"lib/up": "..", "lib/l": "up/../x"}, false, "", []string{`"lib/l"`}},
		{"OKFollowFile", map[string]string{"lib/l": "OUT/o"}, true, "lib/l \"outside\"\n", nil},
		{"OKFollowRelative", map[string]string{"lib/l": "UP/o"}, true, "lib/l \"outside\"\n", nil},
		{"OKFollowDirectory", map[string]string{"d": "OUT"}, true,
			"d/\nd/dangling -> /nowhere/at/all\nd/o \"outside\"\nd/q -> sub/p\nd/self -> .\nd/sub/\nd/sub/p \"also outside\"\n", []string{"symlink d/dangling"}},
		{"OKFollowChain", map[string]string{"l": "m", "m": "OUT/q"}, true, "l \"also outside\"\nm \"also outside\"\n", nil},
		{"OKKeepInside", map[string]string{"l": "lib/a", "k": "DIR/lib"}, true, "k -> lib\nl -> lib/a\n", nil},
		{"OKKeepDanglingOutside", map[string]string{"l": "/nowhere/at/all"}, true, "l -> /nowhere/at/all\n", []string{"symlink l"}},
		{"OKKeepLoop", map[string]string{"l": "m", "m": "l"}, true, "l -> m\nm -> l\n", []string{"symlink l"}},
		{"OKKeepLoopOfDirectories", map[string]string{"above": "DIR/.."}, true, "", nil},
		{"ErrFollowDevice", map[string]string{"null": "/dev/null"}, true, "", []string{`"null"`, "device"}},
		{"OKSecretUnderLink", map[string]string{".erlang.cookie": "OUT/o"}, true, "", []string{"left out .erlang.cookie"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := goodDirectory(t)
			for name, target := range c.links {
				up, err := filepath.Rel(filepath.Join(dir, filepath.Dir(name)), outside)
				if err != nil {
					t.Fatal(err)
				}
				target = strings.NewReplacer("DIR", dir, "OUT", outside, "UP", up).Replace(target)
				symlink(t, target, filepath.Join(dir, name))
			}
			var warnings []string
			s, err := Open(t.Context(), dir, Options{Dereference: c.dereference, Warn: func(text string) { warnings = append(warnings, text) }})
			if strings.HasPrefix(c.name, "Err") {
				wantError(t, err, eboot.ErrInvalid, c.texts...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			said := strings.Join(append(warnings, s.Found().Notes...), "\n")
			for _, text := range c.texts {
				if !strings.Contains(said, text) {
					t.Errorf("%q does not say %q", said, text)
				}
			}
			if c.name == "OKKeepLoopOfDirectories" {
				// The directory above holds the tree itself: it is taken in
				// once, and the link in that copy points to what stands above it there.
				name := "above/" + filepath.Base(dir) + "/above"
				if e := s.Manifest().Find(name); e == nil || e.Kind != eboot.KindSymlink {
					t.Errorf("want a link at %s, got %+v", name, e)
				}
				return
			}
			if got, want := sortedLines(listing(t, s)), sortedLines(base+c.want); got != want {
				t.Errorf("got tree:\n%swant:\n%s", got, want)
			}
		})
	}
}

// Two outside directories that link to each other end, since each link is
// followed only where it does not lead back.
func TestFollowedLoopEnds(t *testing.T) {
	one, two, dir := t.TempDir(), t.TempDir(), goodDirectory(t)
	symlink(t, two, filepath.Join(one, "two"))
	symlink(t, one, filepath.Join(two, "one"))
	symlink(t, one, filepath.Join(dir, "l"))
	s := mustOpen(t, dir, Options{Dereference: true})
	if e := s.Manifest().Find("l/two/one"); e == nil || e.Kind != eboot.KindSymlink {
		t.Errorf("want the loop kept as a link, got:\n%s", listing(t, s))
	}
	if notes := strings.Join(s.Found().Notes, "\n"); !strings.Contains(notes, "l/two/one") {
		t.Errorf("notes %q do not name the loop", notes)
	}
}

func TestDirectoryOddities(t *testing.T) {
	limits := Limits{Entries: 8, FileSize: 1000, TreeBytes: 1500}
	for _, c := range []struct {
		name  string
		make  func(t *testing.T, dir string)
		opts  Options
		want  error
		texts []string
	}{
		{"ErrPipe", func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, "lib/pipe"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, Options{}, eboot.ErrInvalid, []string{`"lib/pipe"`, "named pipe"}},
		{"ErrSocket", func(t *testing.T, dir string) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, Options{}, eboot.ErrInvalid, []string{`"s"`, "socket"}},
		{"ErrNotUTF8", func(t *testing.T, dir string) { writeFile(t, dir+"/lib/\xff", "x") }, Options{}, eboot.ErrInvalid, []string{`lib/\xff`}},
		{"ErrUnreadableFile", func(t *testing.T, dir string) {
			writeFile(t, dir+"/lib/locked", "x")
			lock(t, dir+"/lib/locked")
		}, Options{}, fs.ErrPermission, []string{"lib/locked"}},
		{"ErrUnreadableDirectory", func(t *testing.T, dir string) {
			writeFile(t, dir+"/lib/locked/x", "x")
			lock(t, dir+"/lib/locked")
		}, Options{}, fs.ErrPermission, []string{"lib/locked"}},
		{"ErrFileSize", func(t *testing.T, dir string) { writeFile(t, dir+"/big", strings.Repeat("x", 1001)) },
			Options{Limits: limits}, eboot.ErrTooLarge, []string{`"big"`, "1001 bytes"}},
		{"ErrTreeBytes", func(t *testing.T, dir string) {
			writeFile(t, dir+"/1", strings.Repeat("x", 1000))
			writeFile(t, dir+"/2", strings.Repeat("x", 1000))
		}, Options{Limits: limits}, eboot.ErrTooLarge, []string{"1500 bytes"}},
		{"ErrEntries", func(t *testing.T, dir string) { writeFile(t, dir+"/1/2/3/4", "x") },
			Options{Limits: limits}, eboot.ErrTooLarge, []string{"8 entries"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := goodDirectory(t)
			c.make(t, dir)
			_, err := Open(t.Context(), dir, c.opts)
			wantError(t, err, c.want, c.texts...)
		})
	}
	t.Run("OKUnreadableCookie", func(t *testing.T) {
		dir := goodDirectory(t)
		writeFile(t, dir+"/releases/COOKIE", "secret")
		if os.Geteuid() != 0 {
			lock(t, dir+"/releases/COOKIE")
		}
		s := mustOpen(t, dir, Options{})
		if notes := strings.Join(s.Found().Notes, "\n"); !strings.Contains(notes, "releases/COOKIE") || s.Manifest().Find("releases/COOKIE") != nil {
			t.Errorf("got notes %q and tree:\n%s", notes, listing(t, s))
		}
	})
	t.Run("ErrNeither", func(t *testing.T) {
		_, err := Open(t.Context(), "/dev/null", Options{})
		wantError(t, err, eboot.ErrInvalid, "/dev/null")
	})
	t.Run("ErrMissing", func(t *testing.T) {
		_, err := Open(t.Context(), filepath.Join(t.TempDir(), "nothing"), Options{})
		wantError(t, err, fs.ErrNotExist, "nothing")
	})
}

func lock(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("root can read everything")
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(path, 0o755) })
}

// A directory is refused before it is read when it cannot be a release, with
// the place that can.
func TestWrongDirectory(t *testing.T) {
	dir := t.TempDir()
	symlink(t, "/somewhere/else", filepath.Join(dir, "outside"))
	_, err := Open(t.Context(), dir, Options{})
	wantError(t, err, eboot.ErrInvalid, "no boot script", "start_erl.data", "--boot")
	writeFile(t, filepath.Join(dir, "lib/erlang/bin/start.boot"), script())
	_, err = Open(t.Context(), dir, Options{})
	wantError(t, err, eboot.ErrInvalid, filepath.Join(dir, "lib/erlang")+" has one")
	project := t.TempDir()
	writeFile(t, filepath.Join(project, "_build/prod/rel/x/releases/start_erl.data"), "13.1.5 1")
	_, err = Open(t.Context(), project, Options{})
	wantError(t, err, eboot.ErrInvalid, filepath.Join(project, "_build/prod/rel/x")+" has one")
}

func TestDirectoryChangesBetweenPasses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, file string)
	}{
		{"ErrContent", func(t *testing.T, file string) { writeFile(t, file, "CONTENT OF A") }},
		{"ErrShorter", func(t *testing.T, file string) { writeFile(t, file, "x") }},
		{"ErrLonger", func(t *testing.T, file string) { writeFile(t, file, "content of a and more") }},
		{"ErrGone", func(t *testing.T, file string) { must(t, os.Remove(file)) }},
		{"ErrPipe", func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, syscall.Mkfifo(file, 0o644)) }},
		{"ErrDirectory", func(t *testing.T, file string) { must(t, os.Remove(file)); must(t, os.Mkdir(file, 0o755)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := goodDirectory(t)
			s := mustOpen(t, dir, Options{})
			c.change(t, filepath.Join(dir, "lib/a"))
			puts := 0
			err := s.Blobs(t.Context(), func(d eboot.Digest) bool { return d == eboot.DigestOf([]byte("content of a")) },
				func(d eboot.Digest, size int64, r io.Reader) error {
					puts++
					_, err := io.Copy(io.Discard, r)
					if err == nil {
						t.Error("other content was read to its end without an error")
					}
					return nil // what put makes of it does not matter
				})
			wantError(t, err, eboot.ErrConflict, `"lib/a"`)
			if c.name != "ErrContent" && puts != 0 {
				t.Error("put was called for a file that is not the one that was hashed")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenIsCancelled(t *testing.T) {
	reason := errors.New("ctrl-c")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	tarFile := filepath.Join(t.TempDir(), "x.tar")
	writeFile(t, tarFile, string(makeTar(t, good()...)))
	for _, path := range []string{goodDirectory(t), tarFile} {
		if _, err := Open(ctx, path, Options{}); !errors.Is(err, reason) {
			t.Errorf("%s: got %v, want %v", path, err, reason)
		}
		s := mustOpen(t, path, Options{})
		err := s.Blobs(ctx, func(eboot.Digest) bool { return true }, func(d eboot.Digest, size int64, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if !errors.Is(err, reason) {
			t.Errorf("%s: blobs: got %v, want %v", path, err, reason)
		}
	}
}

// cancelsAtRead ends a context when it is read for the first time.
type cancelsAtRead struct {
	io.Reader
	cancel func()
}

func (c cancelsAtRead) Read(p []byte) (int, error) {
	c.cancel()
	return c.Reader.Read(p)
}

// A cancel while a file is read as a variable tar ends that, too: it is not taken
// for a file that is no archive.
func TestVariableTarIsCancelled(t *testing.T) {
	reason := errors.New("ctrl-c")
	whole := makeTar(t, entry{name: "x", body: strings.Repeat("x", 1<<20)})
	packed := gzipped(t, makeTar(t, entry{name: "x", body: random(1 << 20)}))
	for name, data := range map[string][]byte{"Tar": whole, "Gzip": packed, "NoArchive": []byte(random(1 << 20))} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			n := &node{kind: eboot.KindFile, size: int64(len(data))}
			content := bytes.NewReader(data)
			err := readVariableTar(ctx, "EXT.tar.gz", n, cancelsAtRead{content, func() { cancel(reason) }},
				newHasher(&keeper{}, ""), &budget{limits: Limits{}.orDefault()})
			if !errors.Is(err, reason) {
				t.Errorf("got %v, want %v", err, reason)
			}
			if content.Len() == 0 {
				t.Error("was read to the end")
			}
		})
	}
	dir := goodDirectory(t)
	writeFile(t, filepath.Join(dir, "EXT.tar.gz"), string(packed))
	d := mustOpen(t, dir, Options{}).origin.(*directory)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if err := d.readVariableTars(ctx, &keeper{}); !errors.Is(err, reason) {
		t.Errorf("directory: got %v, want %v", err, reason)
	}
}

// random returns n bytes that do not compress.
func random(n int) string {
	source := rand.NewChaCha8([32]byte{})
	b := make([]byte, n)
	_, _ = source.Read(b) // it never fails
	return string(b)
}

// Whether a directory looks like a release does not depend on where its parts
// stand: a link out of it is followed, or named.
func TestReleaseOfLinks(t *testing.T) {
	outside := t.TempDir()
	writeFile(t, filepath.Join(outside, "start.boot"), script("$ROOT/lib"))
	for name, target := range map[string]string{"Outside": outside, "AbsoluteInside": "DIR/elsewhere"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "elsewhere", "start.boot"), script("$ROOT/lib"))
			symlink(t, strings.Replace(target, "DIR", dir, 1), filepath.Join(dir, "bin"))
			s := mustOpen(t, dir, Options{Dereference: true, ERTS: []string{"13.1.5"}})
			if want := map[string]string{"Outside": "bin/start.boot", "AbsoluteInside": "elsewhere/start.boot"}[name]; s.Found().BootScript != want {
				t.Errorf("got boot script %q, want %q", s.Found().BootScript, want)
			}
			_, err := Open(t.Context(), dir, Options{ERTS: []string{"13.1.5"}})
			if name == "Outside" {
				wantError(t, err, eboot.ErrInvalid, `symlink "bin"`, "--dereference")
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	dir := goodDirectory(t)
	writeFile(t, dir+"/big", strings.Repeat("x", 5<<20))
	tarFile := filepath.Join(t.TempDir(), "x.tar")
	writeFile(t, tarFile, string(makeTar(t, good(entry{name: "big", body: strings.Repeat("x", 5<<20)})...)))
	for _, path := range []string{dir, tarFile} {
		var mu sync.Mutex
		calls, last, total := 0, int64(0), int64(0)
		mustOpen(t, path, Options{Progress: func(done, all int64) {
			if !mu.TryLock() {
				t.Error("two calls at a time")
				return
			}
			defer mu.Unlock()
			if done < last {
				t.Errorf("went back from %d to %d", last, done)
			}
			calls, last, total = calls+1, done, all
		}})
		if calls < 4 || last != total || total < 5<<20 {
			t.Errorf("%s: %d calls, the last with %d of %d", path, calls, last, total)
		}
	}
}

// The same tree is the same bundle, however it comes.
func TestSameTreeSameManifest(t *testing.T) {
	entries := good(
		entry{name: "bin/run", body: "#!/bin/sh", header: func(h *tar.Header) { h.Mode = 0o755 }},
		link("lib/l", "a"), dirEntry("empty"))
	dir := goodDirectory(t)
	writeFile(t, dir+"/bin/run", "#!/bin/sh")
	must(t, os.Chmod(dir+"/bin/run", 0o700))
	symlink(t, "a", dir+"/lib/l")
	must(t, os.Mkdir(dir+"/empty", 0o700))
	want := identity(mustOpen(t, dir, Options{}))

	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(path) == "l" {
			return err
		}
		return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
	}))
	reversed := make([]entry, 0, len(entries))
	for i := range entries {
		reversed = append(reversed, entries[len(entries)-1-i])
	}
	whole := makeTar(t, entries...)
	for name, data := range map[string][]byte{
		"release.tar":     whole,
		"release.tar.gz":  gzipped(t, whole),
		"release.tgz":     zstdFrame(t, whole), // recognised by content, not by name
		"release.tar.zst": zstdFrame(t, whole),
		"reversed":        makeTar(t, reversed...),
	} {
		path := filepath.Join(t.TempDir(), name)
		writeFile(t, path, string(data))
		if got := identity(mustOpen(t, path, Options{})); got != want {
			t.Errorf("%s: got tree %s, want %s", name, got.Short(), want.Short())
		}
	}
	if got := identity(mustOpen(t, dir, Options{})); got != want {
		t.Errorf("touched: got tree %s, want %s", got.Short(), want.Short())
	}
}

// Files of a directory are offered as soon as they are hashed, whatever their size; those
// of an archive are not.
func TestOffersWhileReading(t *testing.T) {
	dir := goodDirectory(t)
	for name, size := range map[string]int{"empty": 0, "small": 100, "edge": readSize, "beyond": readSize + 1, "big": 3*readSize + 7} {
		writeFile(t, dir+"/sub/"+name, strings.Repeat(name[:1], size))
	}
	writeFile(t, dir+"/sub/twin", strings.Repeat("b", 3*readSize+7))
	writeFile(t, dir+"/releases/COOKIE", "secret")
	unwanted := eboot.DigestOf([]byte(strings.Repeat("s", 100)))
	var mu sync.Mutex
	got := map[eboot.Digest]int{}
	opts := Options{
		Want: func(d eboot.Digest) bool { return d != unwanted },
		Put: func(d eboot.Digest, size int64, r io.Reader) error {
			data, err := io.ReadAll(r)
			if eboot.DigestOf(data) != d || int64(len(data)) != size {
				t.Errorf("blob %s: %d bytes of %d, or another content", d.Short(), len(data), size)
			}
			mu.Lock()
			defer mu.Unlock()
			got[d]++
			return err
		},
	}
	s := mustOpen(t, dir, opts)
	want := map[eboot.Digest]bool{}
	for _, e := range s.Manifest().Entries {
		if e.Kind == eboot.KindFile && e.Digest != unwanted {
			want[e.Digest] = true
		}
	}
	if len(got) != len(want) || got[unwanted] != 0 || got[eboot.DigestOf([]byte("secret"))] != 0 {
		t.Errorf("%d blobs were put, want %d", len(got), len(want))
	}

	broken := errors.New("broken")
	opts.Put = func(eboot.Digest, int64, io.Reader) error { return broken }
	if _, err := Open(t.Context(), dir, opts); !errors.Is(err, broken) {
		t.Errorf("a put that fails: %v", err)
	}
	tarFile := filepath.Join(t.TempDir(), "x.tar")
	writeFile(t, tarFile, string(makeTar(t, good()...)))
	mustOpen(t, tarFile, opts)
}
