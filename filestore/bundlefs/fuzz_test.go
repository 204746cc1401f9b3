package bundlefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"eboot"
)

// reference answers like Tree, slowly and by other means: one map, path.Clean and
// a recursion.
type reference struct {
	roots   []string
	entries map[string]eboot.ManifestEntry
}

func (r reference) find(name string, follow bool) (eboot.ManifestEntry, error) {
	switch {
	case name == "":
		return eboot.ManifestEntry{}, syscall.ENOENT
	case len(name) >= 4096:
		return eboot.ManifestEntry{}, syscall.ENAMETOOLONG
	case strings.Contains(name, "\x00"):
		return eboot.ManifestEntry{}, syscall.EINVAL
	}
	rel, ok := r.relative(name)
	if !ok {
		return eboot.ManifestEntry{}, syscall.ENOENT
	}
	links := 0
	return r.walk("", strings.Split(rel, "/"), follow, &links)
}

// relative keeps a slash at the end when name demands a directory.
func (r reference) relative(name string) (string, bool) {
	slash := ""
	if last := name[strings.LastIndex(name, "/")+1:]; strings.Contains(name, "/") && (last == "" || last == "." || last == "..") {
		slash = "/"
	}
	clean := path.Clean(name)
	if clean[0] != '/' && clean != ".." && !strings.HasPrefix(clean, "../") {
		return clean + slash, true
	}
	if clean[0] != '/' {
		clean = path.Join(r.roots[0], clean)
	}
	best, found := "", false
	for _, root := range r.roots {
		if (clean == root || root == "/" || strings.HasPrefix(clean, root+"/")) && len(root) > len(best) {
			best, found = root, true
		}
	}
	return strings.TrimPrefix(clean[len(best):], "/") + slash, found
}

func (r reference) walk(here string, parts []string, follow bool, links *int) (eboot.ManifestEntry, error) {
	if len(parts) == 0 {
		return r.entries[here], nil
	}
	part, rest := parts[0], parts[1:]
	switch part {
	case "", ".":
		return r.walk(here, rest, follow, links)
	case "..":
		if here == "" {
			return eboot.ManifestEntry{}, syscall.ENOENT
		}
		return r.walk(strings.TrimPrefix(path.Dir("/"+here), "/"), rest, follow, links)
	}
	at := strings.TrimPrefix(here+"/"+part, "/")
	e, ok := r.entries[at]
	switch {
	case !ok && len(part) > 255:
		return e, syscall.ENAMETOOLONG
	case !ok:
		return e, syscall.ENOENT
	case e.Kind == eboot.KindDirectory:
		return r.walk(at, rest, follow, links)
	case e.Kind == eboot.KindFile && len(rest) > 0:
		return e, syscall.ENOTDIR
	case e.Kind == eboot.KindFile, len(rest) == 0 && !follow:
		return e, nil
	}
	if *links++; *links > 40 {
		return e, syscall.ELOOP
	}
	target := e.Target
	if target[0] == '/' {
		if target, ok = r.relative(target); !ok {
			return e, syscall.ENOENT
		}
		here = ""
	}
	return r.walk(here, append(strings.Split(target, "/"), rest...), follow, links)
}

// FuzzPath: a name never panics, means what the reference says, and, where
// lexical and POSIX normalising agree, what the kernel says of the same tree.
func FuzzPath(f *testing.F) {
	tree, _ := build(f, sample, Options{Bundle: eboot.Bundle{SysConfig: "releases/27/sys.config"}})
	ref := reference{roots: []string{"/opt/erlang", "/usr/lib/erlang", "/opt/erlang/nested"}, entries: map[string]eboot.ManifestEntry{}}
	for _, n := range tree.nodes { // with the aliases
		e := eboot.ManifestEntry{Path: n.path, Kind: n.kind, Exec: n.exec}
		switch {
		case n.kind == eboot.KindSymlink:
			e.Target = tree.links[n.ref]
		case n.kind == eboot.KindFile:
			e.Size = tree.blobs[n.ref].size
		}
		ref.entries[n.path] = e
	}
	disk := f.TempDir()
	onDisk(f, disk, ref.entries)

	for p := range ref.entries {
		f.Add(p)
		f.Add("/opt/erlang/" + p + "/")
		f.Add("/usr/lib/erlang/x/../" + p + "/no")
	}
	for _, seed := range []string{"", "/", "..", "../erlang/lib", "lib/here/here/./abs/../x", "lib//loop", "a\x00", "/opt/erlang/nested/bin", strings.Repeat("lib/here/", 20) + "inet"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if strings.Contains(name, ".ez") {
			return
		}
		for _, follow := range []bool{true, false} {
			want, wantErr := ref.find(name, follow)
			got, err := tree.Stat([]byte(name), follow)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) || err == nil && (got.Kind != want.Kind || got.Kind == eboot.KindFile && got.Size != want.Size) {
				t.Fatalf("%q, follow %t: %+v, %v; reference: %+v, %v", name, follow, got, err, want, wantErr)
			}
		}
		_, coveredByReference := ref.relative("./" + name)
		if name != "" && name[0] == '/' {
			_, coveredByReference = ref.relative(name)
		}
		if covered := tree.Covers([]byte(name)); covered != coveredByReference {
			t.Fatalf("%q: covered %t", name, covered)
		}
		if name == "" || name[0] == '/' || len(name) > 3000 || slices.Contains(strings.Split(name, "/"), "..") {
			return
		}
		compareWithKernel(t, tree, disk+"/"+name, name)
	})
}

func compareWithKernel(t *testing.T, tree *Tree, real, name string) {
	t.Helper()
	for op, both := range map[string]func() (string, string){
		"stat":  func() (string, string) { return stat(tree, name, true), kernelStat(os.Stat(real)) },
		"lstat": func() (string, string) { return stat(tree, name, false), kernelStat(os.Lstat(real)) },
		"get": func() (string, string) {
			data, err := os.ReadFile(real)
			if err != nil {
				return get(tree, name), errorText(err)
			}
			return get(tree, name), string(data)
		},
		"list": func() (string, string) {
			d, err := os.OpenFile(real, os.O_RDONLY|syscall.O_DIRECTORY, 0)
			if err != nil {
				return list(tree, name), errorText(err)
			}
			defer d.Close()
			names, err := d.Readdirnames(-1)
			if err != nil {
				return list(tree, name), errorText(err)
			}
			slices.Sort(names)
			return list(tree, name), "[" + strings.Join(names, " ") + "]"
		},
	} {
		got, want := both()
		if strings.HasPrefix(got, "l ") && strings.HasPrefix(want, "l ") {
			continue // targets differ, see onDisk
		}
		if got != want {
			t.Fatalf("%s %q: %q, the kernel says %q", op, name, got, want)
		}
	}
}

func kernelStat(info fs.FileInfo, err error) string {
	switch {
	case err != nil:
		return errorText(err)
	case info.IsDir():
		return "d 4096 false"
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Sprintf("l %d false", info.Size())
	}
	return fmt.Sprintf("f %d %t", info.Size(), info.Mode()&0o100 != 0)
}

// onDisk makes the tree of FuzzPath real. Links through the roots become relative
// ones: the host has no such roots.
func onDisk(f *testing.F, dir string, entries map[string]eboot.ManifestEntry) {
	f.Helper()
	var paths []string
	for p := range entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		e, at := entries[p], filepath.Join(dir, p)
		var err error
		switch e.Kind {
		case eboot.KindDirectory:
			err = os.MkdirAll(at, 0o700)
		case eboot.KindSymlink:
			target := e.Target
			switch {
			case strings.HasPrefix(target, "/opt/erlang"):
				target = ".." + strings.TrimPrefix(path.Clean(target), "/opt/erlang")
			case strings.HasPrefix(target, "/usr/lib/erlang"):
				target = ".." + strings.TrimPrefix(target, "/usr/lib/erlang")
			case target[0] == '/' || strings.HasPrefix(target, "../.."):
				target = "missing"
			}
			err = os.Symlink(target, at)
		case eboot.KindFile:
			mode := os.FileMode(0o600)
			if e.Exec {
				mode = 0o700
			}
			err = os.WriteFile(at, []byte(contentOf(p)), mode)
		}
		if err != nil {
			f.Fatal(err)
		}
	}
}

// contentOf is what the sample has at p, by its aliases too.
func contentOf(p string) string {
	if c, ok := sample[p]; ok {
		if target, link := strings.CutPrefix(c, "l "); link {
			return contentOf(path.Join(path.Dir(p), target))
		}
		return strings.TrimPrefix(c, "x ")
	}
	return contentOf("releases/27/" + p)
}

// TestNothingOutside: of every name made of these parts, the answer is one of the
// bundle's own contents or an Errno.
func TestNothingOutside(t *testing.T) {
	tree, _ := build(t, sample, Options{})
	own := map[string]bool{"[].\n": true}
	for _, content := range sample {
		own[strings.TrimPrefix(content, "x ")] = true
	}
	parts := []string{"", ".", "..", "/", "opt", "erlang", "etc", "passwd", "lib", "out", "outabs", "root", "here", "abs"}
	var try func(name string, depth int)
	try = func(name string, depth int) {
		c, err := tree.Get([]byte(name))
		var errno syscall.Errno
		if err == nil && !own[string(c.Data)] || err != nil && !errors.As(err, &errno) {
			t.Fatalf("%q: %q, %v", name, c.Data, err)
		}
		if depth == 0 {
			return
		}
		for _, p := range parts {
			try(name+"/"+p, depth-1)
		}
	}
	try("", 4)
	try("..", 3)
	try("lib", 3)
	try("/opt/erlang", 3)
}
