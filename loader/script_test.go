package loader

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"eboot"
	"eboot/bootproto/etf"
	"eboot/internal/testutil"
)

type (
	atomic = testutil.Atom
	tuple  = testutil.Tuple
	list   = testutil.List
)

func script(instructions ...any) []byte {
	return testutil.Encode(tuple{atomic("script"), tuple{"a", "1"}, list(instructions)})
}

func pathOf(directories ...any) any { return tuple{atomic("path"), list(directories)} }
func loading(modules ...any) any    { return tuple{atomic("primLoad"), list(modules)} }
func apply(mfa ...any) any          { return tuple{atomic("apply"), tuple(mfa)} }

var completed = tuple{atomic("kernel_load_completed")}

func TestParseRefuses(t *testing.T) {
	deep := append([]byte{131, 104, 3, 119, 6}, "script"...)
	deep = append(deep, 106) // its name
	deep = append(append(deep, 108, 0, 0, 0, 1), bytes.Repeat([]byte{104, 1}, 1_000_000)...)
	improper := script(completed)
	improper[len(improper)-1] = 97
	improper = append(improper, 1)
	many := append([]byte{131, 104, 3, 119, 6}, "script"...)
	many = append(many, 106, 108, 0, 2, 0, 0)
	many = append(many, bytes.Repeat([]byte{106}, 1<<17+1)...)
	for name, b := range map[string][]byte{
		"empty":                       {},
		"text":                        []byte("{script,{a,1},[]}."),
		"no tuple":                    testutil.Encode(atomic("script")),
		"a pair":                      testutil.Encode(tuple{atomic("script"), list{}}),
		"another term":                testutil.Encode(tuple{atomic("release"), "a", list{}}),
		"no list":                     testutil.Encode(tuple{atomic("script"), "a", atomic("b")}),
		"a string":                    testutil.Encode(tuple{atomic("script"), "a", "b"}),
		"an improper list":            improper,
		"cut off":                     script(completed)[:20],
		"endless depth":               deep,
		"too many instructions":       many,
		"too many modules":            script(loading(slices.Repeat([]any{atomic("m")}, maxNames/2+1)...), loading(slices.Repeat([]any{atomic("m")}, maxNames/2+1)...)),
		"compressed, cut off":         etf.Deflate(script(pathOf(strings.Repeat("a", 1000))))[:30],
		"compressed, of another size": append([]byte{131, 80, 0, 0, 0, 9}, etf.Deflate(script(pathOf(strings.Repeat("a", 1000))))[6:]...),
		"compressed, too large":       append([]byte{131, 80, 255, 255, 255, 255}, etf.Deflate(script(pathOf(strings.Repeat("a", 1000))))[6:]...),
		"local to an emulator":        {131, 121, 184, 197, 174, 72, 119, 3, 102, 111, 111},
	} {
		if _, err := Parse(b); !errors.Is(err, ErrScript) {
			t.Errorf("%s: parsed: %v", name, err)
		}
		if _, err := Text(b); !errors.Is(err, ErrScript) {
			t.Errorf("%s: printed: %v", name, err)
		}
		if _, err := Rewrite(b, rewriting(true)); !errors.Is(err, ErrScript) {
			t.Errorf("%s: rewritten: %v", name, err)
		}
	}
}

func TestModules(t *testing.T) {
	b := script(
		tuple{atomic("preLoaded"), list{atomic("erlang"), atomic("init")}},
		tuple{atomic("progress"), atomic("preloaded")},
		pathOf("$ROOT/lib/kernel-1/ebin", "$ROOT/lib/stdlib-1/ebin"),
		loading(atomic("code"), atomic("lists"), atomic("erlang")),
		tuple{atomic("primLoad"), tuple{atomic("what")}}, // init would refuse it
		completed,
		pathOf("$LIB/shop-1/ebin", tuple{}, atomic("$ROOT/lib/stdlib-1/ebin"), "$ROOT/../outside", "/absolute"),
		loading(atomic("lists"), atomic("shop"), atomic("sets"), atomic("nowhere")),
		completed,
		loading(atomic("late")),
	)
	tree := treeOf("lib/kernel-1/ebin", "lib/stdlib-1/ebin", "lib/shop-1/ebin/sets.beam")
	for _, name := range []string{"lib/kernel-1/ebin/code.beam", "lib/kernel-1/ebin/lists.beam", "lib/stdlib-1/ebin/lists.beam",
		"lib/stdlib-1/ebin/sets.beam", "lib/shop-1/ebin/shop.beam", "lib/shop-1/ebin/late.beam", "outside/nowhere.beam", "nowhere.beam"} {
		tree[name] = eboot.KindFile
	}
	tree["lib/shop-1/ebin/late.beam"] = eboot.KindSymlink
	for _, form := range [][]byte{b, etf.Deflate(b)} {
		s, err := Parse(form)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			embedded       bool
			modules, files []string
		}{
			{false, []string{"code", "lists"}, []string{"lib/kernel-1/ebin/code.beam", "lib/kernel-1/ebin/lists.beam"}},
			{true, []string{"code", "lists", "shop", "sets", "nowhere", "late"}, []string{"lib/kernel-1/ebin/code.beam", "lib/kernel-1/ebin/lists.beam",
				"lib/shop-1/ebin/shop.beam", "lib/stdlib-1/ebin/sets.beam", "lib/shop-1/ebin/late.beam"}},
		} {
			if got := s.Modules(tc.embedded); !slices.Equal(got, tc.modules) {
				t.Errorf("embedded=%v: modules %v, want %v", tc.embedded, got, tc.modules)
			}
			if got := s.ModuleFiles(tc.embedded, tree); !slices.Equal(got, tc.files) {
				t.Errorf("embedded=%v: files %v, want %v", tc.embedded, got, tc.files)
			}
		}
		paths := s.Paths()
		if len(paths) != 2 || !slices.Equal(paths[1], []string{"$LIB/shop-1/ebin", "", "$ROOT/lib/stdlib-1/ebin", "$ROOT/../outside", "/absolute"}) {
			t.Errorf("paths %q", paths)
		}
	}
}

// TestModulesOfReleases: what real scripts make init load.
func TestModulesOfReleases(t *testing.T) {
	for name, want := range map[string]int{"otp23": 179, "otp25": 183, "otp29": 202, "mix": 551} {
		s, err := Parse(read(t, "testdata/"+name+".boot"))
		if err != nil {
			t.Fatal(err)
		}
		interactive, embedded := s.Modules(false), s.Modules(true)
		if len(interactive) != 29 || interactive[0] != "error_handler" || len(embedded) != want || !slices.Equal(embedded[:29], interactive) {
			t.Errorf("%s: %d and %d modules, first %s", name, len(interactive), len(embedded), interactive[0])
		}
	}
}
