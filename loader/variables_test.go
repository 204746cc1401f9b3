package loader

import (
	"fmt"
	"iter"
	"slices"
	"testing"

	"eboot"
)

func TestVariables(t *testing.T) {
	var seventeen []any
	for i := range maxVariables + 1 {
		seventeen = append(seventeen, fmt.Sprintf("$V%d/a-1/ebin", i))
	}
	for name, tc := range map[string]struct {
		tree  files
		paths []any
		want  []variable
	}{
		"mix": {treeOf("lib/elixir-1/ebin", "releases/1/consolidated", "bin"),
			[]any{"$ROOT/lib/kernel-8/ebin", "$RELEASE_LIB/../releases/1/consolidated", "$RELEASE_LIB/elixir-1/ebin"}, []variable{{"RELEASE_LIB", "lib"}}},
		"two, sorted":               {treeOf("b/x/ebin", "a/y/ebin"), []any{"$Y/y/ebin", "$X/x/ebin"}, []variable{{"X", "b"}, {"Y", "a"}}},
		"the root":                  {treeOf("a/ebin", "b"), []any{"$V/a/ebin"}, []variable{{"V", "."}}},
		"deep":                      {treeOf("opt/shop/lib/a/ebin"), []any{"$V/a/ebin"}, []variable{{"V", "opt/shop/lib"}}},
		"an atom":                   {treeOf("lib/a/ebin"), []any{atomic("$V/a/ebin")}, []variable{{"V", "lib"}}},
		"not clean":                 {treeOf("lib/a/ebin"), []any{"$V//a/./ebin/"}, []variable{{"V", "lib"}}},
		"ambiguous":                 {treeOf("one/a/ebin", "two/a/ebin"), []any{"$V/a/ebin"}, nil},
		"ambiguous but for another": {treeOf("one/a/ebin", "two/a/ebin", "two/b/ebin"), []any{"$V/a/ebin", "$V/b/ebin"}, []variable{{"V", "two"}}},
		"nowhere":                   {treeOf("lib/a/ebin"), []any{"$V/b/ebin"}, nil},
		"in part":                   {treeOf("lib/a/ebin"), []any{"$V/a/ebin", "$V/b/ebin"}, nil},
		"a file":                    {files{"lib": eboot.KindDirectory, "lib/a": eboot.KindFile}, []any{"$V/a"}, nil},
		"above the root":            {treeOf("a"), []any{"$V/../../a"}, nil},
		"nothing but the variable":  {treeOf("lib/a"), []any{"$V"}, nil},
		"the only directory":        {treeOf(), []any{"$V"}, []variable{{"V", "."}}},
		"ROOT":                      {treeOf("lib/a/ebin"), []any{"$ROOT/a/ebin"}, nil},
		"without a name":            {treeOf("lib/a/ebin"), []any{"$/a/ebin"}, nil},
		"a strange name":            {treeOf("lib/a/ebin"), []any{"$Vé/a/ebin", "$V W/a/ebin"}, nil},
		"a strange directory":       {treeOf("libé/a/ebin"), []any{"$V/a/ebin"}, nil},
		"no variable":               {treeOf("lib/a/ebin"), []any{"V/a/ebin", "/$V/a/ebin"}, nil},
		"too many":                  {treeOf("lib/a-1/ebin"), seventeen, nil},
	} {
		s, err := Parse(script(pathOf(tc.paths...)))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.variables(tc.tree); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// vast is a tree in which every directory has every other.
type vast struct{ asked *int }

func (v vast) Entry(string) (eboot.Kind, bool) {
	*v.asked++
	return eboot.KindDirectory, *v.asked%1000 != 0
}

func (v vast) Directories() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := 0; yield(fmt.Sprint(i)); i++ {
			continue
		}
	}
}

// TestVariablesAreGivenUp: a bundle that was made for it must not keep a server busy.
func TestVariablesAreGivenUp(t *testing.T) {
	var paths []any
	for i := range 2000 {
		paths = append(paths, fmt.Sprintf("$A/%d", i), fmt.Sprintf("$B/%d", i))
	}
	s, err := Parse(script(pathOf(paths...)))
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	if got := s.variables(vast{&asked}); len(got) > 0 || asked > maxLookups {
		t.Errorf("%v after %d lookups, at most %d", got, asked, maxLookups)
	}
}
