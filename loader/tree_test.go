package loader

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"eboot"
	"eboot/bootproto/etf"
	"eboot/internal/testutil"
)

func dir(path string, mtime int64) Node {
	return Node{Path: path, Kind: eboot.KindDirectory, ModTime: mtime}
}

func file(path string, size, mtime int64) Node {
	return Node{Path: path, Kind: eboot.KindFile, Size: size, ModTime: mtime}
}

// decoded returns the term of an encoded tree.
func decoded(t *testing.T, packed []byte) any {
	t.Helper()
	frame, err := etf.Inflate(packed, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	term, err := testutil.Decode(frame)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func TestEncodeTree(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes []Node
		want  string
	}{
		"nothing":  {nil, `{d,0,#{}}`},
		"the root": {[]Node{dir("", 7)}, `{d,7,#{}}`},
		"a file":   {[]Node{file("a", 5, 1<<40), {Path: "b", Kind: eboot.KindFile, Exec: true, Size: 1 << 31, ModTime: -1}}, `{d,0,#{<<"a">> => {f,5,1099511627776},<<"b">> => {x,2147483648,-1}}}`},
		"sorted":   {[]Node{file("b", 0, 0), file("a/b.app", 1, 2), dir(".", 9)}, `{d,9,#{<<"a">> => {d,0,#{<<"b.app">> => {f,1,2}}},<<"b">> => {f,0,0}}}`},
		"late":     {[]Node{file("a/b.beam", 1, 2), dir("a", 3)}, `{d,0,#{<<"a">> => {d,3,#{<<"b.beam">> => {f,1,2}}}}}`},
		"no code": {[]Node{file("a/src/b.erl", 1, 2), file("a/ebin/b", 1, 2), dir("a/priv", 3), file("doc/b/c", 1, 2), file("c/sys.config", 4, 5)},
			`{d,0,#{<<"a">> => {d,0,#{<<"ebin">> => {d,0,#{<<"b">> => {f,1,2}}},<<"priv">> => {d,3,#{}},<<"src">> => wire}},<<"c">> => {d,0,#{<<"sys.config">> => {f,4,5}}},<<"doc">> => wire}}`},
		"a symlink": {[]Node{{Path: "s", Kind: eboot.KindSymlink}}, `{d,0,#{<<"s">> => wire}}`},
		"an archive": {[]Node{file("x.ez", 1, 1), dir("y.ez", 2), file("z.ezz", 3, 3)},
			`{d,0,#{<<"x.ez">> => wire,<<"y.ez">> => {d,2,#{}},<<"z.ezz">> => {f,3,3}}}`},
		"a strange name":         {[]Node{file("ebin/é", 1, 1), file("b/ebin/c", 1, 1)}, `{d,0,#{<<"b">> => {d,0,#{<<"ebin">> => {d,0,#{<<"c">> => {f,1,1}}}}},<<"ebin">> => wire}}`},
		"a control character":    {[]Node{file("ebin/\n", 1, 1)}, `{d,0,#{<<"ebin">> => wire}}`},
		"a strange name at root": {[]Node{file("\xff", 1, 1), file("b", 1, 1)}, `wire`},
		"below no directory":     {[]Node{file("a", 1, 1), file("a/b", 1, 1)}, `{d,0,#{<<"a">> => {f,1,1}}}`},
	} {
		packed := EncodeTree(slices.Values(tc.nodes))
		frame, err := etf.Inflate(packed, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(t, frame[1:]); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		slices.Reverse(tc.nodes)
		if again := EncodeTree(slices.Values(tc.nodes)); string(again) != string(packed) {
			t.Errorf("%s: the order of the nodes matters", name)
		}
	}
}

// TestEncodeTreeIsBounded: what is beyond the limit is left to the server, the
// largest directories and the deepest first.
func TestEncodeTreeIsBounded(t *testing.T) {
	var nodes []Node
	add := func(n int, directory string) {
		for i := range n {
			nodes = append(nodes, file(fmt.Sprintf("%s/%d.beam", directory, i), 1, 1))
		}
	}
	add(maxTreeEntries-3, "a") // with a, b and c: all that there may be
	add(1, "b")
	add(1, "c")
	entries := func() map[string]any {
		m := map[string]any{}
		root := decoded(t, EncodeTree(slices.Values(nodes))).(testutil.Tuple)[2].(testutil.Map)
		for i := 0; i < len(root); i += 2 {
			m[string(root[i].([]byte))] = root[i+1]
		}
		return m
	}
	wire := func(m map[string]any) string {
		var names []string
		for name, e := range m {
			if e == testutil.Atom("wire") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := wire(entries()); got != "b c" {
		t.Errorf("left to the server: %s", got)
	}
	add(maxTreeEntries-2, "a") // the same files again
	if got := wire(entries()); got != "a" {
		t.Errorf("left to the server: %s", got)
	}
	nodes = nil
	add(maxTreeEntries+1, "a")
	add(10, "b/c/d")
	if got := wire(entries()); got != "a" {
		t.Errorf("left to the server: %s", got)
	}
	nodes = nil
	for i := range maxTreeEntries + 1 {
		nodes = append(nodes, dir(fmt.Sprint(i), 1))
	}
	if got := decoded(t, EncodeTree(slices.Values(nodes))); got != testutil.Atom("wire") {
		t.Errorf("a root with too many entries: %T", got)
	}
}

// TestEncodeTreeForErlang: Erlang reads it, and finds the same files.
func TestEncodeTreeForErlang(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var nodes []Node
	var list strings.Builder
	for i := range 3000 {
		name := fmt.Sprintf("lib/app-%d/ebin/m%d.beam", rnd.IntN(40), i)
		size, mtime := rnd.Int64N(1<<rnd.IntN(40)), rnd.Int64()>>rnd.IntN(60)
		nodes = append(nodes, file(name, size, mtime))
		fmt.Fprintf(&list, "{<<%q>>,%d,%d}.\n", name, size, mtime)
	}
	dir := t.TempDir()
	write(t, dir+"/tree", EncodeTree(slices.Values(nodes)))
	write(t, dir+"/files", []byte(list.String()))
	if out := escript(t, "tree", dir+"/tree", dir+"/files"); out != "3000 files found\n" {
		t.Error(out)
	}
}

func TestPack(t *testing.T) {
	for _, content := range []string{"", "short", strings.Repeat("long ", 1000)} {
		frame, err := etf.Inflate(Pack([]byte(content)), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := testutil.Decode(frame); err != nil || string(got.([]byte)) != content {
			t.Errorf("%.20q came back as %.20q, %v", content, got, err)
		}
	}
	if n := len(Pack(make([]byte, 5000))); n > 100 {
		t.Errorf("5000 zeros take %d bytes", n)
	}
}

// TestEncodeTreeSize: what a slave is sent of an installation of OTP.
func TestEncodeTreeSize(t *testing.T) {
	var nodes []Node
	for app := range 40 {
		for m := range 60 {
			nodes = append(nodes, file(fmt.Sprintf("lib/app%d-1.2.3/ebin/app%d_module%d.beam", app, app, m), int64(4000+m*317+app), 1_700_000_000))
		}
	}
	if packed := EncodeTree(slices.Values(nodes)); len(packed) > 16<<10 || packed[1] != 80 {
		t.Errorf("%d files take %d bytes", len(nodes), len(packed))
	}
}
