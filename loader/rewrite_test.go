package loader

import (
	"bytes"
	"errors"
	"flag"
	"regexp"
	"strings"
	"testing"

	"eboot"
	"eboot/bootproto/etf"
	"eboot/internal/testutil"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestRewriteGolden prints what becomes of scripts of real releases. Sizes of the loader
// are left out.
func TestRewriteGolden(t *testing.T) {
	for _, name := range []string{"otp25", "mix"} {
		r := rewriting(true)
		if name == "otp25" {
			r = Rewriting{Bundle: eboot.Ref{Name: "otp", Version: "25"}, Script: "bin/start.boot", ERTS: "11.1", Tree: treeOf()}
		}
		out, err := Rewrite(read(t, "testdata/"+name+".boot"), r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text, err := Text(out)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text = regexp.MustCompile(`% [0-9]+ bytes`).ReplaceAllString(text, "% N bytes")
		// Lists of modules and applications are long, and are compared by Erlang elsewhere.
		text = regexp.MustCompile(`(?m)^(.{300}).*?([\]}).,]*)$`).ReplaceAllString(text, "$1 … $2")
		golden := "testdata/" + name + ".golden"
		if *update {
			write(t, golden, []byte(text))
		}
		if want := string(read(t, golden)); text != want {
			t.Errorf("%s is not %s (write it with -update):\n%s", name, golden, text)
		}
	}
}

// TestRewriteCopies: what must not change does not, byte for byte, whatever form it
// has, and the same input gives the same output.
func TestRewriteCopies(t *testing.T) {
	// Forms that term_to_binary never chooses.
	odd := testutil.Raw{104, 2, 100, 0, 5, 'a', 'p', 'p', 'l', 'y', 105, 0, 0, 0, 3, 110, 1, 0, 7, 98, 0, 0, 0, 7,
		108, 0, 0, 0, 0, 116, 0, 0, 0, 1, 99, '1', '.', '5', '0', 'e', '+', '0', '0', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 106}
	b := script(pathOf("$NONE/none/ebin"), odd, loading(atomic("unicode")), completed, completed)
	r := rewriting(true)
	out, err := Rewrite(append(b, "bytes after the term"...), r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Rewrite(etf.Deflate(b), r)
	if err != nil || !bytes.Equal(out, again) {
		t.Errorf("the compressed script gives another result, %v", err)
	}
	before, after := parsed(t, b), parsed(t, out)
	if n := copied(before, after); n != len(before.instructions) {
		t.Errorf("instruction %d of %d was not copied", n+1, len(before.instructions))
	}
	var inserted []string
	for _, in := range after.instructions {
		if !before.has(in) {
			inserted = append(inserted, show(t, in.raw))
		}
	}
	if len(inserted) != 3 || !strings.Contains(inserted[1], "kernelProcess") || inserted[2] != "{apply,{eboot_loader,configure,[]}}" {
		t.Errorf("inserted: %s", inserted)
	}
}

func parsed(t testing.TB, b []byte) *Script {
	t.Helper()
	s, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func show(t testing.TB, raw []byte) string {
	t.Helper()
	d := etf.NewValue(raw)
	text, _, err := d.AppendText(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// copied returns how many instructions of a script stand in another, byte for byte
// and in the same order, until one does not. Paths that were marked count.
func copied(before, after *Script) int {
	n := 0
	for _, in := range after.instructions {
		if n == len(before.instructions) {
			break
		}
		if want := before.instructions[n]; bytes.Equal(in.raw, want.raw) || in.kind == codePath && want.kind == codePath && marked(want, in) {
			n++
		}
	}
	return n
}

// marked reports whether a path differs from another by marks of ours alone.
func marked(before, after instruction) bool {
	if len(before.names) != len(after.names) {
		return false
	}
	for i, name := range before.names {
		if !bytes.Equal(before.dirs[i], after.dirs[i]) && "$ROOT/"+name != after.names[i] {
			return false
		}
	}
	return true
}

func (s *Script) has(in instruction) bool {
	for _, other := range s.instructions {
		if bytes.Equal(in.raw, other.raw) {
			return true
		}
	}
	return false
}

func TestRewriteRefuses(t *testing.T) {
	ours, err := Rewrite(script(completed), rewriting(false))
	if err != nil {
		t.Fatal(err)
	}
	old := rewriting(true)
	old.ERTS = "10.7"
	for name, tc := range map[string]struct {
		script []byte
		r      Rewriting
		want   error
	}{
		"twice":                {ours, rewriting(false), ErrScript},
		"loads ours":           {script(apply(atomic("erlang"), atomic("load_module"), list{atomic("eboot_loader"), []byte{}})), rewriting(true), ErrScript},
		"starts ours":          {script(tuple{atomic("kernelProcess"), atomic("eboot_loader"), tuple{atomic("a"), atomic("b"), list{}}}), rewriting(true), ErrScript},
		"calls ours":           {script(apply(atomic("eboot_loader"), atomic("phase"), list{})), rewriting(true), ErrScript},
		"nothing":              {script(), rewriting(true), ErrScript},
		"nothing but progress": {script(tuple{atomic("progress"), atomic("a")}), rewriting(true), ErrScript},
		"an old ERTS":          {script(completed), old, ErrERTS},
	} {
		if _, err := Rewrite(tc.script, tc.r); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for name, b := range map[string][]byte{
		"loads another": script(apply(atomic("erlang"), atomic("load_module"), list{atomic("other"), []byte{}})),
		"speaks of it":  script(apply(atomic("a"), atomic("b"), list{atomic("eboot_loader")})),
		"no apply":      script(tuple{atomic("apply"), atomic("eboot_loader")}, tuple{}, 1, "text", tuple{atomic("path")}),
	} {
		if _, err := Rewrite(b, rewriting(true)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRewrite(f *testing.F) {
	for _, name := range glob(f, "testdata/*.boot") {
		f.Add(read(f, name), byte(1))
	}
	f.Add(script(tuple{atomic("preLoaded"), list{atomic("init")}}, tuple{atomic("progress"), atomic("preloaded")},
		pathOf("$LIB/a-1/ebin", "$LIB/../releases/1/consolidated", atomic("$OTHER/b/ebin")), loading(atomic("a")), completed), byte(1))
	f.Add(script(tuple{atomic("progress"), list{1, 2, "x", 1.5}}, apply(atomic("a"), atomic("b"), list{}), tuple{atomic("progress"), atomic("p")}), byte(0))
	f.Add(script(tuple{atomic("kernelProcess"), atomic("heart"), tuple{atomic("heart"), atomic("start"), list{}}}, loading(atomic("unicode")), completed), byte(3))
	f.Add(etf.Deflate(script(pathOf(strings.Repeat("a", 100)), completed)), byte(4))
	f.Fuzz(func(t *testing.T, b []byte, how byte) {
		before, err := Parse(b)
		text, textErr := Text(b)
		if err != nil {
			if textErr == nil {
				t.Fatalf("is no script (%v), but has a text: %s", err, text)
			}
			return
		}
		r := rewriting(how&1 != 0)
		if files := before.ModuleFiles(true, r.Tree); len(files) > len(before.Modules(true)) {
			t.Fatalf("%d files of %d modules", len(files), len(before.Modules(true)))
		}
		if how&2 != 0 {
			r.Tree = nil
		}
		out, err := before.splice([]byte("code"), r)
		if err != nil {
			if !errors.Is(err, ErrScript) {
				t.Fatal(err)
			}
			return
		}
		after := parsed(t, out)
		if n := copied(before, after); n != len(before.instructions) {
			t.Fatalf("instruction %d of %d was not copied: %s", n+1, len(before.instructions), text)
		}
		if extra := len(after.instructions) - len(before.instructions); extra < 2 || extra > len(before.instructions)+5 {
			t.Fatalf("%d instructions became %d", len(before.instructions), len(after.instructions))
		}
		if _, err := after.splice(nil, r); !errors.Is(err, ErrScript) {
			t.Fatalf("rewritten twice: %v", err)
		}
	})
}
