package test

import (
	"bytes"
	"compress/zlib"
	endian "encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// Names that break programs which take a name for something simpler than it is.
var oddNames = []string{
	"with space", " leading", "trailing ", "tab\there", "new\nline", "100%", "%41", "a%2Fb", "back\\slash",
	"quote'\"`", "glob*?[x]", "$ROOT", "~", "-dash", "#hash", "semi;colon", "a:b", "..dots", "...", ".hidden", "dots..",
	"ünïcödé", "ÿ", "λ-calculus", "日本語.beam", "𝔘.erl", "e\u0301 combining", "\u00e9 composed", "\u200b",
	"x.ezz", "ez", ".ez.d", strings.Repeat("n", 255),
}

// oddTree makes a directory that eboot can publish and that has everything an OTP
// installation has not.
func oddTree(t testing.TB, erl testutil.Erlang) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile(erl.BootScript())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/bin/start.boot", string(boot))
	write(t, root+"/plain.txt", "plain\n")
	write(t, root+"/empty", "")
	write(t, root+"/large", strings.Repeat("0123456789abcdef", 1<<16)) // more than any cache of small files takes
	write(t, root+"/exec", "#!/bin/sh\n")
	write(t, root+"/dir/sub/file", "deep\n")
	write(t, root+"/lib/app-1/ebin/app.app", "{application,app,[]}.\n")
	for _, d := range []string{"hollow", "dir.ez"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root+"/exec", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/dir.ez/inside", "a directory that is named like an archive\n")
	for _, name := range oddNames {
		write(t, filepath.Join(root, "odd", name), name)
	}
	write(t, filepath.Join(append([]string{root, "deep"}, strings.Split(strings.Repeat("d", 60), "")...)...)+"/file", "x")

	for name, target := range map[string]string{
		"to-file": "../plain.txt", "to-dir": "../dir", "to-link": "to-file", "to-self": "to-self",
		"loop-a": "loop-b", "loop-b": "loop-a", "dangling": "nowhere", "into": "../dir/sub/file",
		"up": "..", "to-slash": "../dir/", "dotted": "./../dir/./sub/..", "through": "to-dir/sub", "to-ez": "../store/app-1.ez",
	} {
		link(t, target, filepath.Join(root, mustDir(t, root, "links"), name))
	}

	outside := t.TempDir() + "/outside"
	write(t, outside, "outside of the tree\n")
	link(t, outside, root+"/links/out")
	// More names than fit into one block of any file system.
	for i := range 300 {
		write(t, fmt.Sprintf("%s/crowd/%s%d", root, strings.Repeat("long name ", 10), i), "")
	}
	// Whatever a stat has to tell that a bundle does not keep.
	write(t, root+"/private", "nobody else's")
	if err := os.Chmod(root+"/private", 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(root+"/private", 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.Chtimes(root+"/private", old.AddDate(1, 0, 0), old); err != nil {
		t.Fatal(err)
	}
	writeArchives(t, erl, root)
	if err := os.Chtimes(root, old, old); err != nil {
		t.Fatal(err)
	}
	return root
}

func mustDir(t testing.TB, root, name string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// writeArchives makes archives with OTP's own zip module: of a directory, of files
// without directory entries, uncompressed, empty; and what is no archive at all.
func writeArchives(t testing.TB, erl testutil.Erlang, root string) {
	t.Helper()
	store := filepath.Join(root, mustDir(t, root, "store"))
	write(t, root+"/lib/app-1/ebin/app.beam", strings.Repeat("beam", 3000))
	write(t, root+"/lib/app-1/priv/deep/er/file", "deep in an archive\n")
	write(t, root+"/lib/app-1/odd/λ and space", "odd in an archive\n")
	write(t, store+"/bad.ez", "this is no zip file, whatever its name says")
	write(t, store+"/empty.ez", "")
	zipCreate(t, erl, root, `
		{ok, _} = zip:create("store/app-1.ez", ["app-1"], [{cwd, "lib"}, {compress, all}]),
		{ok, _} = zip:create("store/flat.ez", [{"flat/ebin/a.beam", <<"a">>}, {"flat/ebin/b.beam", <<"b">>}, {"top", <<"t">>}]),
		{ok, _} = zip:create("store/stored.ez", [{"stored/x", binary:copy(<<"x">>, 5000)}], [{uncompress, all}]),
		{ok, _} = zip:create("store/none.ez", []),
		{ok, Inner} = file:read_file("store/flat.ez"),
		{ok, _} = zip:create("store/nested.ez", [{"n/flat.ez", Inner}]),
		{ok, Whole} = file:read_file("store/app-1.ez"),
		ok = file:write_file("store/cut.ez", binary:part(Whole, 0, byte_size(Whole) div 2))`)
}

// oddProbes ask for everything in the odd tree, and for much that is not there.
func oddProbes(t *testing.T, root string) []*probe {
	t.Helper()
	names := []string{root, root + "/", root + "//", root + "/.", root + "/..", "", ".", "..", "./", "./.", ".//./dir"}
	for _, base := range []string{
		"plain.txt", "empty", "large", "exec", "dir", "dir/sub", "dir/sub/file", "hollow", "dir.ez", "dir.ez/inside", "crowd", "private",
		"missing", "dir/missing", "plain.txt/x", "plain.txt/", "plain.txt/.", "plain.txt/..", "plain.txt/../dir", "missing/..", "missing/../dir",
		"dir/", "dir//", "dir/.", "dir/..", "dir/../plain.txt", "dir/sub/../../plain.txt", "dir/../../plain.txt", "hollow/..",
		strings.Repeat("n", 256), strings.Repeat("m", 5000), strings.Repeat("dir/../", 700) + "plain.txt", strings.Repeat("d/", 3000),
		"deep/" + strings.Repeat("d/", 60) + "file", "lib", "lib/app-1/ebin/app.app",
	} {
		names = append(names, root+"/"+base, base, "./"+base)
	}
	for _, base := range oddNames {
		names = append(names, root+"/odd/"+base, "odd/"+base+"/", root+"/odd/"+base+".missing")
	}
	for _, base := range []string{
		"to-file", "to-dir", "to-dir/", "to-dir/sub", "to-dir/sub/file", "to-dir/../plain.txt", "to-link", "to-self", "loop-a", "loop-b", "loop-a/x",
		"dangling", "dangling/", "dangling/x", "dangling/..", "into", "into/", "into/x", "up", "up/plain.txt", "up/../plain.txt", "to-slash",
		"to-slash/sub", "dotted", "dotted/sub/file", "through", "through/file", "through/../../plain.txt", "to-file/", "to-file/x",
		"to-ez", "to-ez/", "out", "out/", "up/store/app-1.ez/app-1",
	} {
		names = append(names, root+"/links/"+base, "links/"+base)
	}
	for _, base := range []string{
		"app-1.ez", "app-1.ez/", "app-1.ez//", "app-1.ez/app-1", "app-1.ez/app-1/", "app-1.ez/app-1/ebin", "app-1.ez/app-1/ebin/",
		"app-1.ez/app-1/ebin/app.beam", "app-1.ez/app-1/ebin/app.app", "app-1.ez/app-1/ebin/app.beam/", "app-1.ez/app-1/ebin/app.beam/x",
		"app-1.ez/app-1/priv/deep", "app-1.ez/app-1/priv/deep/er/file", "app-1.ez/app-1/odd", "app-1.ez/app-1/odd/λ and space", "app-1.ez/missing",
		"app-1.ez/app-1/missing", "app-1.ez/missing/ebin", "app-1.ez/app-1/ebin/missing.beam", "app-1.ez/app-1/./ebin", "app-1.ez/app-1/../app-1",
		"app-1.ez/app-1//ebin", "app-1.ez/..", "app-1.ez/../app-1.ez", "app-1.ez/.", "./app-1.ez/app-1", "../store/app-1.ez/app-1",
		"flat.ez", "flat.ez/flat", "flat.ez/flat/ebin", "flat.ez/flat/ebin/a.beam", "flat.ez/top", "flat.ez/top/x",
		"stored.ez", "stored.ez/stored/x", "none.ez", "none.ez/x", "nested.ez", "nested.ez/n", "nested.ez/n/flat.ez", "nested.ez/n/flat.ez/flat",
		"bad.ez", "bad.ez/x", "empty.ez", "empty.ez/x", "cut.ez", "cut.ez/app-1", "missing.ez", "missing.ez/x", "missing.ez/x/ebin",
		"to.ez/x", "app-1.ez/app-1/ebin.ez/x",
	} {
		names = append(names, root+"/store/"+base, "store/"+base)
	}
	names = append(names, root+"/links/to-ez/app-1", root+"/dir.ez/sub/x", root+"/.ez", root+"/.ez/x", ".ez", ".ez/x", "..ez", "..ez/.", root+"/missing.ez")
	names = append(names, root+"/sys.config", "sys.config", root+"/bin/start.boot", "bin/start.boot", root+"/releases", root+"/bin/start.boot/")

	probes := pathProbes(root, names...)
	probes = append(probes, commandProbes()...)
	probes = append(probes, nameProbes(root)...)
	return append(probes, brokenProbes(root)...)
}

// nameProbes name paths in ways that no loader does: with characters that are none, and
// with terms that are no list of characters.
func nameProbes(root string) []*probe {
	var probes []*probe
	add := func(text string, name any) {
		for _, command := range []string{"get", "read_file_info", "read_link_info", "list_dir"} {
			p := termProbe("{"+command+","+text+"}", testutil.Tuple{testutil.Atom(command), name})
			probes = append(probes, p)
		}
	}
	plain := testutil.Text(root + "/plain.txt")
	add("NUL at the end", append(plain[:len(plain):len(plain)], 0))
	add("NUL inside", testutil.Text(root+"/pl\x00ain.txt"))
	add("surrogate", append(plain[:len(plain):len(plain)], 0xd800))
	add("code point above 10ffff", append(plain[:len(plain):len(plain)], 0x110000))
	add("negative character", append(plain[:len(plain):len(plain)], -1))
	add("noncharacter fffe", append(plain[:len(plain):len(plain)], 0xfffe))
	add("float character", append(plain[:len(plain):len(plain)], 1.5))
	add("binary name", []byte(root+"/plain.txt"))
	add("atom name", testutil.Atom("plain.txt"))
	add("number name", 7)
	add("tuple name", testutil.Tuple{"a"})
	add("nested list", testutil.List{testutil.Text(root), testutil.Text("/plain.txt")})
	add("atom in a list", append(testutil.Text(root+"/"), testutil.Atom("plain"), testutil.Atom(".txt")))
	add("improper list", improperList(root+"/plain.txt"))
	add("LIST_EXT of bytes", wideList(root+"/plain.txt"))
	add("name as list of bytes of its UTF-8", bytesOf(root+"/odd/ünïcödé"))
	return probes
}

func bytesOf(s string) testutil.List {
	var l testutil.List
	for i := range len(s) {
		l = append(l, int(s[i]))
	}
	return l
}

// wideList encodes s as LIST_EXT although STRING_EXT would do.
func wideList(s string) testutil.Raw {
	out := endian.BigEndian.AppendUint32([]byte{108}, uint32(len(s)))
	for i := range len(s) {
		out = append(out, 97, s[i])
	}
	return append(out, 106)
}

func improperList(s string) testutil.Raw {
	out := []byte(wideList(s))
	return append(out[:len(out)-1], 97, 'x')
}

// brokenProbes are frames that are no term, or no usual one.
func brokenProbes(root string) []*probe {
	good := testutil.Encode(testutil.Tuple{testutil.Atom("get"), root + "/plain.txt"})
	frame := func(text string, content ...byte) *probe { return &probe{request: content, text: text} }
	probes := []*probe{
		frame("empty frame"),
		frame("version byte alone", 131),
		frame("other version byte", append([]byte{130}, good[1:]...)...),
		frame("text", []byte("GET / HTTP/1.1\r\n\r\n")...),
		frame("unknown tag", 131, 255),
		frame("atom cut off", 131, 100, 0, 9, 'g'),
		frame("bytes after the term", append(good[:len(good):len(good)], 0)...),
		frame("two terms", append(good[:len(good):len(good)], good...)...),
		frame("tuple that claims 2^32-1 elements", 131, 105, 255, 255, 255, 255, 106),
		frame("list that claims 2^32-1 elements", 131, 108, 255, 255, 255, 255, 106),
		frame("binary that claims 2^32-1 bytes", 131, 109, 255, 255, 255, 255, 106),
		frame("lists nested 4,000 deep", slices.Concat([]byte{131}, bytes.Repeat([]byte{108, 0, 0, 0, 1}, 4000), bytes.Repeat([]byte{106}, 4001))...),
		frame("atom of 300 characters", append([]byte{131, 100, 1, 44}, bytes.Repeat([]byte{'a'}, 300)...)...),
		frame("atom that is no UTF-8", 131, 119, 2, 0xc3, 0x28),
		{request: compressed(good), text: "compressed term"},
	}
	for _, n := range []int{2, 5, 8, 10, len(good) - 1} {
		probes = append(probes, frame("request cut off", good[:n]...))
	}
	// Other spellings of the same request, which any client may choose.
	small := append([]byte{131, 104, 2, 119, 3, 'g', 'e', 't'}, good[9:]...)
	utf8 := append([]byte{131, 104, 2, 118, 0, 3, 'g', 'e', 't'}, good[9:]...)
	latin := append([]byte{131, 104, 2, 115, 3, 'g', 'e', 't'}, good[9:]...)
	large := append([]byte{131, 105, 0, 0, 0, 2}, good[3:]...)
	return append(probes, frame("SMALL_ATOM_UTF8_EXT", small...), frame("ATOM_UTF8_EXT", utf8...),
		frame("SMALL_ATOM_EXT", latin...), frame("LARGE_TUPLE_EXT", large...),
		&probe{request: make([]byte, 1<<20), text: "frame of 1 MiB"})
}

// compressed is term_to_binary(T, [compressed]).
func compressed(encoded []byte) []byte {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	_, _ = w.Write(encoded[1:])
	_ = w.Close()
	out := endian.BigEndian.AppendUint32([]byte{131, 80}, uint32(len(encoded)-1))
	return append(out, z.Bytes()...)
}
