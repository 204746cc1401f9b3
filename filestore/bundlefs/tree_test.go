package bundlefs

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"eboot"
	"eboot/filestore"
)

// spec is a tree for tests by path: "d" a directory, "l TARGET" a symlink,
// anything else the content of a file; "x " before it makes it executable.
// Directories above are implied.
type spec map[string]string

func (s spec) manifest() (*eboot.Manifest, map[eboot.Digest][]byte) {
	m, contents, seen := &eboot.Manifest{}, map[eboot.Digest][]byte{}, map[string]bool{}
	add := func(e eboot.ManifestEntry) {
		if !seen[e.Path] {
			seen[e.Path] = true
			m.Entries = append(m.Entries, e)
		}
	}
	for p, what := range s {
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			add(eboot.ManifestEntry{Path: dir, Kind: eboot.KindDirectory})
		}
		if what == "d" {
			add(eboot.ManifestEntry{Path: p, Kind: eboot.KindDirectory})
		} else if target, ok := strings.CutPrefix(what, "l "); ok {
			add(eboot.ManifestEntry{Path: p, Kind: eboot.KindSymlink, Target: target})
		} else {
			content, exec := strings.CutPrefix(what, "x ")
			d := eboot.DigestOf([]byte(content))
			contents[d] = []byte(content)
			add(eboot.ManifestEntry{Path: p, Kind: eboot.KindFile, Exec: exec, Size: int64(len(content)), Digest: d})
		}
	}
	m.Sort()
	return m, contents
}

// build makes a Tree of s over a real store. Zero values of opts get defaults.
func build(t testing.TB, s spec, opts Options) (*Tree, *filestore.Store) {
	t.Helper()
	m, contents := s.manifest()
	store, err := filestore.Open(filestore.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	in := store.Ingest()
	defer in.Close()
	for d, c := range contents {
		if err := in.Put(t.Context(), d, int64(len(c)), bytes.NewReader(c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	opts.Manifest, opts.Blobs = m, store
	if opts.Roots == nil {
		opts.Roots = []string{"/opt/erlang", "/usr/lib/erlang", "/opt/erlang/nested"}
	}
	if opts.Bundle.BootScript == "" {
		opts.Bundle.BootScript = "bin/start.boot"
	}
	for i := range m.Entries {
		opts.Times = append(opts.Times, int64(1000+i))
	}
	tree, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return tree, store
}

// get, list and stat put an answer into one line.
func get(t *Tree, name string) string {
	c, err := t.Get([]byte(name))
	if err != nil {
		return errorText(err)
	}
	if c.File != nil {
		defer c.File.Close()
		if c.Data, err = io.ReadAll(c.File); err != nil {
			return errorText(err)
		}
	}
	if int64(len(c.Data)) != c.Size {
		return fmt.Sprintf("%d bytes announced as %d", len(c.Data), c.Size)
	}
	return string(c.Data)
}

func list(t *Tree, name string) string {
	names, err := t.List([]byte(name))
	if err != nil {
		return errorText(err)
	}
	return "[" + strings.Join(names, " ") + "]"
}

func stat(t *Tree, name string, follow bool) string {
	info, err := t.Stat([]byte(name), follow)
	if err != nil {
		return errorText(err)
	}
	return fmt.Sprintf("%c %d %t", info.Kind, info.Size, info.Exec)
}

var errnoText = map[syscall.Errno]string{
	syscall.ENOENT: "ENOENT", syscall.ENOTDIR: "ENOTDIR", syscall.EISDIR: "EISDIR", syscall.ELOOP: "ELOOP",
	syscall.EINVAL: "EINVAL", syscall.ENAMETOOLONG: "ENAMETOOLONG", syscall.EIO: "EIO",
}

func errorText(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errnoText[errno]
	}
	return err.Error()
}

var sample = spec{
	"bin/start.boot":                  "boot",
	"bin/erl":                         "x #!/bin/sh",
	"lib/kernel-8/ebin/kernel.app":    "kernel",
	"lib/kernel-8/ebin/inet.beam":     "inet",
	"lib/kernel-8/priv":               "d",
	"lib/kernel":                      "l kernel-8",
	"lib/here":                        "l .",
	"lib/abs":                         "l /usr/lib/erlang/lib/kernel-8/ebin",
	"lib/absdots":                     "l /opt/erlang/../erlang/lib//kernel/./ebin/",
	"lib/out":                         "l ../../etc/passwd",
	"lib/outabs":                      "l /etc/passwd",
	"lib/root":                        "l /opt/erlang",
	"lib/inet":                        "l kernel/ebin/inet.beam",
	"lib/inetslash":                   "l kernel/ebin/inet.beam/",
	"lib/dangling":                    "l nowhere/at/all",
	"lib/loop":                        "l loop2",
	"lib/loop2":                       "l loop",
	"lib/grow":                        "l grow/x",
	"lib/deep":                        "l kernel/ebin/../priv/../ebin/kernel.app",
	"lib/.hidden":                     "hidden",
	"lib/...":                         "dots",
	"lib/ü":                           "umlaut",
	"nested/lib":                      "a file, under the longer root it is the tree's lib",
	"releases/27/sys.config":          "[{kernel,[]}].",
	"releases/27/extra.config":        "[{x,[]}].",
	"releases/27/more/inner.config":   "[].",
	"releases/27/linked.config":       "l extra.config",
	"releases/27/dangling.config":     "l nothing",
	"releases/27/directory.config":    "d",
	"releases/start_erl.data":         "13.1.5 27",
	"releases/27/start.boot":          "other boot",
	"releases/27/consolidated/p.beam": "p",
}

func TestNames(t *testing.T) {
	tree, _ := build(t, sample, Options{Bundle: eboot.Bundle{SysConfig: "releases/27/sys.config"}})
	long := strings.Repeat("n", 256)
	const kernel = "[inet.beam kernel.app]"
	tests := []struct{ name, get, list, stat, lstat string }{
		{"", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{".", "EISDIR", "[bin extra.config lib linked.config more nested releases sys.config]", "d 4096 false", "d 4096 false"},
		{"/opt/erlang", "EISDIR", "[bin extra.config lib linked.config more nested releases sys.config]", "d 4096 false", "d 4096 false"},
		{"/usr/lib/erlang//./", "EISDIR", "[bin extra.config lib linked.config more nested releases sys.config]", "d 4096 false", "d 4096 false"},
		{"/", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/opt", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/opt/erlangs/bin", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/etc/passwd", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/opt/erlang/../../etc/passwd", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"../../etc/passwd", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"../erlang/bin/erl", "#!/bin/sh", "ENOTDIR", "f 9 true", "f 9 true"},
		{"/../../opt/erlang/bin/erl", "#!/bin/sh", "ENOTDIR", "f 9 true", "f 9 true"},
		{"/opt/erlang/lib/kernel-8/ebin/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"},
		{"/opt/erlang/nested/lib/kernel-8/ebin/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"},
		{"/opt/erlang/nested/nested/lib/x", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"nested/lib/x", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/kernel-8/ebin/", "EISDIR", kernel, "d 4096 false", "d 4096 false"},
		{"lib/kernel-8/ebin/none.beam", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib/none/ebin/none.beam", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib/kernel-8/ebin/inet.beam/", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/kernel-8/ebin/inet.beam/.", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/kernel-8/ebin/inet.beam/x/y", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/none/../kernel-8/ebin/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"}, // lexical
		{"lib/kernel-8/ebin/inet.beam/../kernel.app", "kernel", "ENOTDIR", "f 6 false", "f 6 false"},
		{"lib/../releases/27/consolidated/p.beam", "p", "ENOTDIR", "f 1 false", "f 1 false"},
		{"lib/kernel", "EISDIR", "[ebin priv]", "d 4096 false", "l 8 false"},
		{"lib/kernel/", "EISDIR", "[ebin priv]", "d 4096 false", "d 4096 false"},
		{"lib/kernel/ebin/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"},
		{"lib/kernel/ebin/none.beam", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib/here/here/kernel/ebin/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"},
		{"lib/here/../start_erl.data", "ENOENT", "ENOENT", "ENOENT", "ENOENT"}, // lexical: lib/start_erl.data
		{"lib/abs", "EISDIR", kernel, "d 4096 false", "l 33 false"},
		{"lib/absdots/inet.beam", "inet", "ENOTDIR", "f 4 false", "f 4 false"},
		{"lib/root/lib/root/bin/erl", "#!/bin/sh", "ENOTDIR", "f 9 true", "f 9 true"},
		{"lib/out", "ENOENT", "ENOENT", "ENOENT", "l 16 false"},
		{"lib/outabs", "ENOENT", "ENOENT", "ENOENT", "l 11 false"},
		{"lib/outabs/x", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib/inet", "inet", "ENOTDIR", "f 4 false", "l 21 false"},
		{"lib/inet/", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/inet/x", "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/inetslash", "ENOTDIR", "ENOTDIR", "ENOTDIR", "l 22 false"},
		{"lib/dangling", "ENOENT", "ENOENT", "ENOENT", "l 14 false"},
		{"lib/dangling/", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib/loop", "ELOOP", "ELOOP", "ELOOP", "l 5 false"},
		{"lib/loop/x", "ELOOP", "ELOOP", "ELOOP", "ELOOP"},
		{"lib/grow", "ELOOP", "ELOOP", "ELOOP", "l 6 false"},
		{"lib/deep", "kernel", "ENOTDIR", "f 6 false", "l 38 false"},
		{"lib/.hidden", "hidden", "ENOTDIR", "f 6 false", "f 6 false"},
		{"lib/...", "dots", "ENOTDIR", "f 4 false", "f 4 false"},
		{"lib/ü", "umlaut", "ENOTDIR", "f 6 false", "f 6 false"},
		{"lib/\xfc", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"lib\x00", "EINVAL", "EINVAL", "EINVAL", "EINVAL"},
		{"x\x00/../lib", "EINVAL", "EINVAL", "EINVAL", "EINVAL"},
		{long, "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG"},
		{long[:255], "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"none/" + long, "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"bin/erl/" + long, "ENOTDIR", "ENOTDIR", "ENOTDIR", "ENOTDIR"},
		{"lib/kernel/" + long + "/x", "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG"},
		{strings.Repeat("./", 2044) + "bin/erl", "#!/bin/sh", "ENOTDIR", "f 9 true", "f 9 true"},
		{strings.Repeat("./", 2045) + "bin/erl", "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG", "ENAMETOOLONG"},
		{"sys.config", "[{kernel,[]}].", "ENOTDIR", "f 14 false", "f 14 false"},
		{"/opt/erlang/extra.config", "[{x,[]}].", "ENOTDIR", "f 9 false", "f 9 false"},
		{"/opt/erlang/linked.config", "[{x,[]}].", "ENOTDIR", "f 9 false", "f 9 false"},
		{"/opt/erlang/inner.config", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/opt/erlang/more/inner.config", "[].", "ENOTDIR", "f 3 false", "f 3 false"},
		{"more", "EISDIR", "[inner.config]", "d 4096 false", "d 4096 false"},
		{"/opt/erlang/dangling.config", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
		{"/opt/erlang/directory.config", "ENOENT", "ENOENT", "ENOENT", "ENOENT"},
	}
	for _, tt := range tests {
		got := []string{get(tree, tt.name), list(tree, tt.name), stat(tree, tt.name, true), stat(tree, tt.name, false)}
		if want := []string{tt.get, tt.list, tt.stat, tt.lstat}; !slices.Equal(got, want) {
			t.Errorf("%.80q:\n got %q\nwant %q", tt.name, got, want)
		}
	}
}

func TestCovers(t *testing.T) {
	tree, _ := build(t, sample, Options{})
	for name, want := range map[string]bool{
		"bin": true, ".": true, "": true, "/opt/erlang": true, "/opt/erlang/x/../y": true, "/usr/lib/erlang/lib": true, "../erlang/x": true,
		"/": false, "/opt": false, "/opt/erlangx": false, "/opt/erlang/../x": false, "../x": false, "/home/user/.erlang": false,
	} {
		if got := tree.Covers([]byte(name)); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
	if tree.WorkingDirectory() != "/opt/erlang" {
		t.Error(tree.WorkingDirectory())
	}
	slash, _ := build(t, sample, Options{Roots: []string{"/"}})
	if got := get(slash, "/bin/erl"); got != "#!/bin/sh" {
		t.Error(got)
	}
	if got := get(slash, "../bin/erl"); got != "#!/bin/sh" {
		t.Error(got)
	}
}

func TestBlobs(t *testing.T) {
	tree, _ := build(t, spec{"bin/start.boot": "boot", "a": "same", "b": "same", "c": ""}, Options{})
	got := map[eboot.Digest]int64{}
	for d, size := range tree.Blobs() {
		got[d] += size + 100
	}
	if len(got) != 3 || got[eboot.DigestOf([]byte("same"))] != 104 || got[eboot.DigestOf(nil)] != 100 {
		t.Error(got)
	}
}

func TestAliases(t *testing.T) {
	const boot, config = "releases/1/start.boot", "releases/1/sys.config"
	release := func(more spec) spec {
		s := spec{boot: "boot", config: "config"}
		for p, what := range more {
			s[p] = what
		}
		return s
	}
	for name, tt := range map[string]struct {
		tree   spec
		bundle eboot.Bundle
		want   map[string]string // by name: content, or list when it begins with [
	}{
		"NothingThere": {release(nil), eboot.Bundle{BootScript: boot, SysConfig: config}, map[string]string{
			"bin/start.boot": "boot", "sys.config": "config", "bin": "[start.boot]", ".": "[bin releases sys.config]"}},
		"OthersThere": {release(spec{"bin/start.boot": "wrong", "bin/erl": "x", "sys.config": "wrong"}), eboot.Bundle{BootScript: boot, SysConfig: config}, map[string]string{
			"bin/start.boot": "boot", "sys.config": "config", "bin": "[erl start.boot]", ".": "[bin releases sys.config]"}},
		"NoConfig": {release(nil), eboot.Bundle{BootScript: boot}, map[string]string{
			"sys.config": "[].\n", ".": "[bin releases sys.config]"}},
		"ConfigDangles": {release(spec{"sys.config": "l nowhere"}), eboot.Bundle{BootScript: boot}, map[string]string{
			"sys.config": "[].\n"}},
		"ConfigOfTheTree": {release(spec{"sys.config": "own"}), eboot.Bundle{BootScript: boot}, map[string]string{
			"sys.config": "own"}},
		"BinIsLink": {release(spec{"erts/bin/erl": "x", "bin": "l erts/bin"}), eboot.Bundle{BootScript: boot}, map[string]string{
			"bin/start.boot": "boot", "bin": "[erl start.boot]", "erts/bin": "[erl start.boot]"}},
		"BinDangles": {release(spec{"bin": "l nowhere"}), eboot.Bundle{BootScript: boot}, map[string]string{
			"bin/start.boot": "boot", "bin": "[start.boot]"}},
		"BinIsFile": {release(spec{"bin": "file"}), eboot.Bundle{BootScript: boot}, map[string]string{
			"bin/start.boot": "boot", "bin": "[start.boot]"}},
		"ThroughLinks": {release(spec{"releases/now": "l 1", "releases/1/x.config": "x"}), eboot.Bundle{BootScript: "releases/now/start.boot", SysConfig: "releases/now/sys.config"}, map[string]string{
			"bin/start.boot": "boot", "sys.config": "config", "x.config": "x", ".": "[bin releases sys.config x.config]"}},
		"IncludesBelow": {release(spec{"releases/1/conf/extra.config": "extra", "releases/1/conf/deep/er.config": "er", "releases/1/conf/other": "o", "releases/1/lib/l.config": "l 2", "lib/a": "a",
			"releases/1/lib/2": "lib", "releases/1/none/x.beam": "x", "releases/1/gone/dangling.config": "l nowhere", "releases/1/f/x.config": "x", "f": "file",
			"releases/1/down/x.config": "x", "down": "l nowhere", "releases/1/to/x.config": "to", "to": "l lib/to", "lib/to": "d"}), eboot.Bundle{BootScript: boot, SysConfig: config}, map[string]string{
			"conf/extra.config": "extra", "conf/deep/er.config": "er", "conf": "[deep extra.config]", "conf/deep": "[er.config]", "lib": "[a l.config to]", "lib/l.config": "lib",
			"f": "file", "lib/to/x.config": "to", "to/x.config": "to", "lib/to": "[x.config]", "to": "[x.config]",
			".": "[bin conf down f lib releases sys.config to]", "releases/1/conf": "[deep extra.config other]"}},
		"IncludesOfTheTree": {release(spec{"conf/x.config": "own", "releases/1/conf/x.config": "x", "releases/1/conf/y.config": "y", "conf/z.config": "l nowhere", "releases/1/conf/z.config": "z"}),
			eboot.Bundle{BootScript: boot, SysConfig: config}, map[string]string{
				"conf/x.config": "own", "conf/y.config": "y", "conf": "[x.config y.config z.config]"}},
		"IncludeOfTheTree": {release(spec{"x.config": "own", "releases/1/x.config": "x"}), eboot.Bundle{BootScript: boot, SysConfig: config}, map[string]string{
			"x.config": "own"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := build(t, tt.tree, Options{Bundle: tt.bundle})
			for name, want := range tt.want {
				got := get(tree, "/opt/erlang/"+name)
				if want[0] == '[' && want[len(want)-1] == ']' {
					got = list(tree, name)
				} else if s := stat(tree, name, false); s != fmt.Sprintf("f %d false", len(want)) {
					t.Errorf("%s: stat %s", name, s)
				}
				if got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
	t.Run("LinkToTheSameStays", func(t *testing.T) {
		tree, _ := build(t, release(spec{"bin/start.boot": "l ../" + boot}), Options{Bundle: eboot.Bundle{BootScript: boot}})
		if got := stat(tree, "bin/start.boot", false); got != "l 24 false" {
			t.Error(got)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"NoRoots":       func(o *Options) { o.Roots = nil },
		"RelativeRoot":  func(o *Options) { o.Roots = []string{"opt"} },
		"UncleanRoot":   func(o *Options) { o.Roots = []string{"/opt/"} },
		"Times":         func(o *Options) { o.Times = []int64{1} },
		"NoBootScript":  func(o *Options) { o.Bundle.BootScript = "bin/other.boot" },
		"BootDirectory": func(o *Options) { o.Bundle.BootScript = "bin" },
		"NoSysConfig":   func(o *Options) { o.Bundle.SysConfig = "sys.config" },
		"Unsorted":      func(o *Options) { slices.Reverse(o.Manifest.Entries) },
		"TwoSizes": func(o *Options) {
			e := *o.Manifest.Find("bin/start.boot")
			e.Path, e.Size = "z", 99
			o.Manifest.Entries = append(o.Manifest.Entries, e)
		},
		"ConfigDirectory": func(o *Options) {
			o.Manifest.Entries = append(o.Manifest.Entries, eboot.ManifestEntry{Path: "sys.config", Kind: eboot.KindDirectory})
			o.Bundle.SysConfig = "bin/start.boot"
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := spec{"bin/start.boot": "boot"}.manifest()
			opts := Options{Roots: []string{"/opt"}, Manifest: m, Bundle: eboot.Bundle{BootScript: "bin/start.boot"}}
			if _, err := New(opts); err != nil {
				t.Fatal(err)
			}
			change(&opts)
			if _, err := New(opts); !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// unavailable gives out nothing, for reasons of the host.
type unavailable struct{ err error }

func (u unavailable) Content(eboot.Digest, int64) (filestore.Content, error) {
	return filestore.Content{}, u.err
}

// TestHostErrors: what is wrong with the host is never taken for an answer about
// the tree, which would be final for the slave.
func TestHostErrors(t *testing.T) {
	m, _ := spec{"bin/start.boot": "boot", "x.ez": "zip"}.manifest()
	for in, want := range map[error]error{
		fmt.Errorf("open: %w", syscall.EMFILE):                        eboot.ErrUnavailable,
		fmt.Errorf("read: %w: %w", syscall.EIO, eboot.ErrDamaged):     eboot.ErrDamaged,
		fmt.Errorf("blob: %w: %w", eboot.ErrNotFound, syscall.ENOENT): eboot.ErrNotFound,
	} {
		tree, err := New(Options{Roots: []string{"/opt"}, Manifest: m, Bundle: eboot.Bundle{BootScript: "bin/start.boot"}, Blobs: unavailable{in}})
		if err != nil {
			t.Fatal(err)
		}
		_, getErr := tree.Get([]byte("bin/start.boot"))
		_, archiveErr := tree.Get([]byte("x.ez/a"))
		_, listErr := tree.List([]byte("x.ez"))
		_, statErr := tree.Stat([]byte("x.ez/a"), true)
		for _, err := range []error{getErr, archiveErr, listErr, statErr} {
			var errno syscall.Errno
			if errors.As(err, &errno) || !errors.Is(err, want) {
				t.Errorf("%v became %v", in, err)
			}
		}
	}
}

// packed makes a zip of names and contents; a name that ends in / is a directory.
func packed(t testing.TB, method uint16, files ...[2]string) string {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range files {
		e, err := w.CreateHeader(&zip.FileHeader{Name: f[0], Method: method})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(e, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// fixed is a store that has one content for every digest.
type fixed []byte

func (f fixed) Content(eboot.Digest, int64) (filestore.Content, error) {
	return filestore.Content{Data: f, Size: int64(len(f))}, nil
}
