package bundlefs

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"eboot/internal/testutil"
)

func TestArchive(t *testing.T) {
	beam := strings.Repeat("beam", 500)
	files := [][2]string{{"x-1/", ""}, {"x-1/ebin/a.beam", beam}, {"x-1/ebin/b.beam", "b"}, {"top.txt", "top"}, {"x-1/priv/", ""},
		{"../evil", "e"}, {"/abs", "e"}, {"a//b", "e"}, {"./dot", "e"}, {"x-1/ebin/b.beam", "second"}, {"\xe4\xf6", "latin1"}}
	for _, way := range []struct {
		method     uint16
		cachedSize int64
	}{{zip.Store, 0}, {zip.Deflate, 0}, {zip.Store, 1}, {zip.Deflate, 1}} {
		t.Run(fmt.Sprint("method", way.method, "cached", way.cachedSize), func(t *testing.T) {
			z := packed(t, way.method, files...)
			tree, _ := build(t, spec{
				"bin/start.boot": "boot", "lib/x.ez": z, "lib/link.ez": "l x.ez", "lib/plain": "l x.ez", "lib/gone.ez": "l nowhere",
				"lib/broken.ez": z[:len(z)/2], "lib/empty.ez": "", "lib/none.ez": "PK\x05\x06" + strings.Repeat("\x00", 18), "lib/dir.ez/inner": "i", "lib/dir.ez/y.ez": z,
				"lib/linkdir.ez": "l dir.ez",
			}, Options{Archives: ArchiveLimits{CachedSize: way.cachedSize}})
			size := fmt.Sprintf("d %d false", len(z))
			for _, tt := range []struct{ name, get, list, stat string }{
				{"lib/x.ez", "ENOENT", "[top.txt x-1 äö]", size},
				{"lib/x.ez/", "ENOENT", "[top.txt x-1 äö]", size},
				{"lib/x.ez/x-1", "ENOENT", "[ebin priv]", "d 0 false"},
				{"lib/x.ez/x-1/ebin", "ENOENT", "[a.beam b.beam]", size},
				{"lib/x.ez/x-1/ebin/", "ENOENT", "[a.beam b.beam]", size},
				{"lib/x.ez/x-1/priv", "ENOENT", "[]", "d 0 false"},
				{"lib/x.ez/x-1/ebin/a.beam", beam, "ENOTDIR", "f 2000 false"},
				{"lib/x.ez//x-1/./ebin/b.beam", "b", "ENOTDIR", "f 1 false"},
				{"lib/x.ez/x-1/ebin/b.beam/", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/x.ez/x-1/ebin/b.beam/c", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/x.ez/x-1/ebin/none.beam", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/x.ez/none", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/x.ez/../../bin/start.boot", "boot", "ENOTDIR", "f 4 false"}, // lexical
				{"lib/x.ez/evil", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/x.ez/äö", "latin1", "ENOTDIR", "f 6 false"},
				{"lib/link.ez/top.txt", "top", "ENOTDIR", "f 3 false"},
				{"lib/link.ez", "ENOENT", "[top.txt x-1 äö]", size},
				{"lib/plain", z, "ENOTDIR", fmt.Sprintf("f %d false", len(z))},
				{"lib/plain/top.txt", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
				{"lib/gone.ez", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/missing.ez", "ENOENT", "ENOTDIR", "ENOENT"},
				{"lib/missing.ez/a", "ENOENT", "ENOTDIR", "ENOENT"},
				{"bin/start.boot/x.ez/a", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
				{"lib/broken.ez", z[:len(z)/2], "ENOTDIR", fmt.Sprintf("f %d false", len(z)/2)},
				{"lib/broken.ez/a", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
				{"lib/empty.ez", "", "ENOTDIR", "f 0 false"},
				{"lib/none.ez", "PK\x05\x06" + strings.Repeat("\x00", 18), "ENOTDIR", "f 22 false"},
				{"lib/dir.ez", "EISDIR", "[inner y.ez]", "d 4096 false"},
				{"lib/dir.ez/inner", "i", "ENOTDIR", "f 1 false"},
				{"lib/dir.ez/missing", "ENOENT", "ENOENT", "ENOENT"},
				{"lib/dir.ez/y.ez/top.txt", "top", "ENOTDIR", "f 3 false"},
				{"lib/linkdir.ez/y.ez/top.txt", "top", "ENOTDIR", "f 3 false"},
			} {
				for range 2 { // first use, and from the caches
					if got := []string{get(tree, tt.name), list(tree, tt.name), stat(tree, tt.name, true)}; !slices.Equal(got, []string{tt.get, tt.list, tt.stat}) {
						t.Errorf("%s: got %.200q", tt.name, got)
					}
				}
			}
			if got := stat(tree, "lib/link.ez", false); got != size {
				t.Errorf("link to an archive, not followed: %s", got)
			}
			if got := stat(tree, "lib/linkdir.ez", false); got != "l 6 false" {
				t.Errorf("link to a directory, not followed: %s", got)
			}
		})
	}
}

// TestArchiveLarge: an archive that does not fit the blob cache is read from its file.
func TestArchiveLarge(t *testing.T) {
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	tree, _ := build(t, spec{"bin/start.boot": "boot", "x.ez": packed(t, zip.Store, [2]string{"big", string(noise)}, [2]string{"small", "s"})}, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if get(tree, "x.ez/big") != string(noise) || get(tree, "x.ez/small") != "s" {
				t.Error("wrong content")
			}
		})
	}
	wg.Wait()
}

// TestLargeMembersAreNotHeld: however many slaves are in the middle of a large
// member, and however slowly they read, none of them holds it in memory.
func TestLargeMembersAreNotHeld(t *testing.T) {
	const readers, size = 24, 4 << 20
	noise := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{}).Read(noise[:size/2]); err != nil {
		t.Fatal(err)
	}
	for _, method := range []uint16{zip.Store, zip.Deflate} {
		tree, _ := build(t, spec{"bin/start.boot": "boot", "x.ez": packed(t, method, [2]string{"big", string(noise)}, [2]string{"small", strings.Repeat("s", 256<<10)})}, Options{})
		list(tree, "x.ez") // reads the directory
		before := heap()
		var contents []io.ReadCloser
		for i := range readers {
			c, err := tree.Get([]byte("x.ez/big"))
			if err != nil || c.File == nil || c.Size != size {
				t.Fatalf("%+v, %v", c, err)
			}
			if _, err := io.CopyN(io.Discard, c.File, int64(i*1000)); err != nil {
				t.Fatal(err)
			}
			contents = append(contents, c.File)
		}
		if held := int64(heap()) - int64(before); held > readers*100<<10 {
			t.Errorf("method %d: %d readers of %d bytes hold %d bytes", method, readers, size, held)
		}
		if cost := tree.archives.members.Cost(); cost != 0 {
			t.Errorf("method %d: %d bytes are cached", method, cost)
		}
		for i, r := range contents {
			if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, noise[i*1000:]) {
				t.Fatalf("method %d: the rest from %d on: %d bytes, %v", method, i*1000, len(rest), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if _, err := r.(*memberReader).archive.File.Read(nil); !errors.Is(err, os.ErrClosed) {
				t.Errorf("the archive is still open: %v", err)
			}
		}
		if got := get(tree, "x.ez/small"); len(got) != 256<<10 || tree.archives.members.Cost() < 256<<10 {
			t.Errorf("a small member of %d bytes is not cached", len(got))
		}
	}
}

// TestMemberIsWholeOrFails: who reads exactly the size of a member does not get all
// of it when it is another by now.
func TestMemberIsWholeOrFails(t *testing.T) {
	const content = "content"
	right := member{size: int64(len(content)), crc: crc32.ChecksumIEEE([]byte(content))}
	disk := &os.PathError{Op: "read", Err: syscall.ENOMEM}
	for name, tt := range map[string]struct {
		unpacked io.Reader
		change   func(*member)
		want     error
	}{
		"OK":          {strings.NewReader(content), func(*member) {}, nil},
		"OKByBytes":   {iotest.OneByteReader(strings.NewReader(content)), func(*member) {}, nil},
		"OKEarlyEnd":  {iotest.DataErrReader(strings.NewReader(content)), func(*member) {}, nil},
		"ErrChecksum": {strings.NewReader("CONTENT"), func(*member) {}, errBadMember},
		"ErrShort":    {strings.NewReader(content), func(m *member) { m.size++ }, errBadMember},
		"ErrLong":     {strings.NewReader(content + "s"), func(*member) {}, errBadMember},
		"ErrDisk":     {io.MultiReader(strings.NewReader("con"), iotest.ErrReader(disk)), func(*member) {}, syscall.ENOMEM},
		"ErrDiskLate": {io.MultiReader(strings.NewReader(content), iotest.ErrReader(disk)), func(*member) {}, syscall.ENOMEM},
	} {
		t.Run(name, func(t *testing.T) {
			m := right
			tt.change(&m)
			buf := make([]byte, m.size)
			_, err := io.ReadFull(&memberReader{unpacked: tt.unpacked, member: m, left: m.size}, buf)
			if !errors.Is(err, tt.want) || tt.want == nil && string(buf) != content {
				t.Errorf("got %q, %v; want %v", buf, err, tt.want)
			}
			if tt.want == syscall.ENOMEM && errors.Is(err, errBadMember) {
				t.Error("the disk's error is taken for the archive's")
			}
		})
	}
}

func TestArchiveLimits(t *testing.T) {
	many := make([][2]string, 50)
	for i := range many {
		many[i] = [2]string{fmt.Sprintf("f%d", i), "0123456789"}
	}
	deep := [2]string{strings.Repeat("d/", 60) + "f", ""}
	zeros := strings.Repeat("\x00", 4<<20)
	for name, tt := range map[string]struct {
		zip    string
		limits ArchiveLimits
		open   bool
	}{
		"OK":           {packed(t, zip.Deflate, many...), ArchiveLimits{Entries: 51, FileSize: 10, TotalSize: 500}, true},
		"ErrEntries":   {packed(t, zip.Deflate, many...), ArchiveLimits{Entries: 49}, false},
		"ErrImplied":   {packed(t, zip.Deflate, deep), ArchiveLimits{Entries: 50}, false},
		"ErrFileSize":  {packed(t, zip.Deflate, many...), ArchiveLimits{FileSize: 9}, false},
		"ErrTotalSize": {packed(t, zip.Deflate, many...), ArchiveLimits{TotalSize: 499}, false},
		"ErrRatio":     {packed(t, zip.Deflate, [2]string{"zeros", zeros}), ArchiveLimits{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := build(t, spec{"bin/start.boot": "boot", "x.ez": tt.zip}, Options{Archives: tt.limits})
			if got := list(tree, "x.ez"); (got != "ENOTDIR") != tt.open {
				t.Error(got)
			}
			if got := get(tree, "x.ez"); (got == tt.zip) == tt.open {
				t.Errorf("%.40q", got)
			}
		})
	}
}

// TestArchiveLies: members that are not what the directory says are EIO, for ever
// and without harm to the others.
func TestArchiveLies(t *testing.T) {
	whole := packed(t, zip.Deflate, [2]string{"a", strings.Repeat("abc", 100)}, [2]string{"b", "bbb"})
	central := strings.Index(whole, centralHeader)
	for name, lie := range map[string]func([]byte){
		"Longer":     func(c []byte) { binary.LittleEndian.PutUint32(c[24:], 301) },
		"Shorter":    func(c []byte) { binary.LittleEndian.PutUint32(c[24:], 299) },
		"Checksum":   func(c []byte) { c[16] ^= 1 },
		"Method":     func(c []byte) { c[10] = 12 },
		"Stored":     func(c []byte) { c[10] = 0 },
		"Encrypted":  func(c []byte) { c[8] |= 1 },
		"Offset":     func(c []byte) { binary.LittleEndian.PutUint32(c[42:], 5) },
		"FarOffset":  func(c []byte) { binary.LittleEndian.PutUint32(c[42:], 1<<32-1) },
		"PackedSize": func(c []byte) { binary.LittleEndian.PutUint32(c[20:], 1<<32-1) },
		"CutPacked":  func(c []byte) { binary.LittleEndian.PutUint32(c[20:], 3) },
	} {
		t.Run(name, func(t *testing.T) {
			z := []byte(whole)
			lie(z[central:])
			for _, cachedSize := range []int64{0, 1} { // cached, and unpacked as they are sent
				tree, _ := build(t, spec{"bin/start.boot": "boot", "x.ez": string(z)}, Options{Archives: ArchiveLimits{CachedSize: cachedSize}})
				for range 2 {
					if got := get(tree, "x.ez/a"); got != "EIO" {
						t.Errorf("%.40q", got)
					}
				}
				if got := get(tree, "x.ez/b"); got != "bbb" {
					t.Errorf("%.40q", got)
				}
			}
		})
	}
}

// FuzzBundleZip: whatever stands in a file that ends in .ez, nothing panics, nothing
// beyond the limits is unpacked, no name leads out of it, what is listed can be asked for, and its
// directory takes memory in proportion to the file.
func FuzzBundleZip(f *testing.F) {
	for _, name := range []string{"greeter-1.0.0.ez", "packed.ez"} { // by zip:create of OTP 25
		real, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(real)
	}
	for _, method := range []uint16{zip.Store, zip.Deflate} {
		f.Add([]byte(packed(f, method, [2]string{"x-1/", ""}, [2]string{"x-1/ebin/a.beam", strings.Repeat("beam", 50)}, [2]string{"top", "t"})))
	}
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\xff", 18)))
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := ArchiveLimits{Entries: 100, FileSize: 1 << 16, TotalSize: 1 << 18, CachedSize: 100}.withDefaults()
		var a *archive
		var err error
		if got := testutil.Allocated(func() { a, err = readArchive(bytes.NewReader(data), int64(len(data)), limits) }); got > uint64(1<<20+128*len(data)) {
			t.Fatalf("%d bytes set aside for %d", got, len(data))
		}
		if err != nil {
			return
		}
		if len(a.files)+len(a.dirs) > limits.Entries {
			t.Fatalf("%d names", len(a.files)+len(a.dirs))
		}
		for name := range a.files {
			if !filepath.IsLocal(name) || path.Clean(name) != name {
				t.Fatalf("a member %q", name)
			}
		}
		for name, d := range a.dirs {
			for _, child := range d.names {
				p := strings.TrimPrefix(name+"/"+child, "/")
				if _, err := a.stat(p, false, 0); err != nil {
					t.Fatalf("%q is listed: %v", p, err)
				}
			}
		}
		store := fixed(data)
		as := newArchives(&Tree{nodes: make([]node, 1), blobs: []blob{{size: int64(len(data))}}, source: store}, limits)
		for name, m := range a.files {
			c, err := as.get(found{archive: a, member: name})
			if err != nil {
				continue
			}
			if c.File != nil {
				if c.Data, err = io.ReadAll(c.File); err != nil {
					t.Fatalf("%q: was whole before: %v", name, err)
				}
			}
			if int64(len(c.Data)) != m.size || c.Size != m.size || c.Size > limits.FileSize {
				t.Fatalf("%q: %d bytes", name, len(c.Data))
			}
		}
	})
}
