package ingest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"eboot"
)

func files(names ...string) []entry {
	var entries []entry
	for _, n := range names {
		name, body, _ := strings.Cut(n, "=")
		if body == "" {
			body = script()
		}
		entries = append(entries, entry{name: name, body: body})
	}
	return entries
}

func TestFindBoot(t *testing.T) {
	for _, c := range []struct {
		name      string
		boot      string
		files     []string
		want      string // empty: ErrInvalid with these texts
		sysConfig string
		texts     []string
	}{
		{"OKStartData", "", []string{"releases/start_erl.data=13.1.5 2", "releases/1/start.boot", "releases/2/start.boot", "releases/2/sys.config", "bin/start.boot"}, "releases/2/start.boot", "releases/2/sys.config", nil},
		{"OKStartDataNewline", "", []string{"releases/start_erl.data=13.1.5 25\n", "releases/25/start.boot"}, "releases/25/start.boot", "", nil},
		{"OKNamed", "", []string{"releases/start_erl.data=13.1.5 2", "releases/2/greeter.boot", "releases/2/start_clean.boot", "releases/2/no_dot_erlang.boot"}, "releases/2/greeter.boot", "", nil},
		{"OKOnlyRelease", "", []string{"releases/1/start.boot", "bin/start.boot"}, "releases/1/start.boot", "", nil},
		{"OKBin", "", []string{"bin/start.boot", "bin/start_clean.boot"}, "bin/start.boot", "", nil},
		{"OKBinOfSeveral", "", []string{"releases/1/start.boot", "releases/2/start.boot", "bin/start.boot"}, "bin/start.boot", "", nil},
		{"OKStartClean", "", []string{"releases/1/start_clean.boot"}, "releases/1/start_clean.boot", "", nil},
		{"OKStaleStartData", "", []string{"releases/start_erl.data=13.1.5 9", "releases/1/start.boot"}, "releases/1/start.boot", "", nil},
		{"OKEvilStartData", "", []string{"releases/start_erl.data=13.1.5 ../x", "releases/1/start.boot"}, "releases/1/start.boot", "", []string{"start_erl.data is not"}},
		{"OKGiven", "lib/x.boot", []string{"releases/1/start.boot", "lib/x.boot", "lib/sys.config"}, "lib/x.boot", "lib/sys.config", nil},
		{"OKGivenWithoutSuffix", "lib/x", []string{"releases/1/start.boot", "lib/x.boot"}, "lib/x.boot", "", nil},
		{"OKGivenDot", "./lib/x", []string{"releases/1/start.boot", "lib/x.boot"}, "lib/x.boot", "", nil},
		{"OKGivenConfigOfRelease", "bin/x", []string{"releases/start_erl.data=13.1.5 2", "releases/2/start.boot", "releases/2/sys.config", "bin/x.boot"}, "bin/x.boot", "releases/2/sys.config", nil},
		{"OKConfigTemplate", "", []string{"releases/1/start.boot", "releases/1/sys.config.src"}, "releases/1/start.boot", "", []string{"sys.config.src is a template"}},
		{"OKRuntimeConfig", "", []string{"releases/1/start.boot", "releases/1/runtime.exs"}, "releases/1/start.boot", "", []string{"runtime.exs"}},
		{"OKNotAScript", "", []string{"releases/1/start.boot=text"}, "releases/1/start.boot", "", []string{"does not look like a boot script"}},
		{"ErrGivenMissing", "bin/other", []string{"releases/1/start.boot"}, "", "", []string{`"bin/other"`}},
		{"ErrGivenOutside", "../x", []string{"releases/1/start.boot"}, "", "", []string{`"../x"`}},
		{"ErrSeveral", "", []string{"releases/1/start.boot", "releases/2/start.boot"}, "", "", []string{"releases/1/start.boot, releases/2/start.boot", "--boot"}},
		{"ErrNone", "", []string{"releases/1/x.rel", "lib/kernel/ebin/kernel.app"}, "", "", []string{"no boot script", "bin/start.boot"}},
		{"ErrElsewhere", "", []string{"x", "lib/erlang/bin/start.boot"}, "", "", []string{"lib/erlang has one"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := openBytes(t.Context(), makeTar(t, files(c.files...)...), Options{Boot: c.boot, ERTS: []string{"13.1.5"}})
			if c.want == "" {
				wantError(t, err, eboot.ErrInvalid, c.texts...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			f := s.Found()
			if f.BootScript != c.want || f.SysConfig != c.sysConfig {
				t.Errorf("got boot script %q and sys.config %q, want %q and %q", f.BootScript, f.SysConfig, c.want, c.sysConfig)
			}
			for _, text := range c.texts {
				if !strings.Contains(strings.Join(f.Notes, "\n"), text) {
					t.Errorf("notes %q do not say %q", f.Notes, text)
				}
			}
		})
	}
	t.Run("OKThroughLinks", func(t *testing.T) {
		s := mustOpenBytes(t, makeTar(t, append(files("releases/start_erl.data=13.1.5 2", "boot/real.boot", "boot/real.config"),
			link("releases/2", "../boot"), link("boot/start.boot", "real.boot"), link("boot/sys.config", "real.config"))...), Options{})
		if f := s.Found(); f.BootScript != "boot/real.boot" || f.SysConfig != "boot/real.config" {
			t.Errorf("got %+v, want the files that the links lead to", f)
		}
	})
}

func TestFindERTS(t *testing.T) {
	rel := func(v string) string {
		return fmt.Sprintf("releases/1/x.rel={release,{\"x\",\"1\"},\n {erts, %q},[]}.", v)
	}
	for _, c := range []struct {
		name  string
		given []string
		files []string
		want  []string // nil: ErrInvalid
		text  string
	}{
		{"OKDirectory", nil, []string{"erts-13.1.5/bin/beam.smp"}, []string{"13.1.5"}, ""},
		{"OKStartData", nil, []string{"releases/start_erl.data=13.1.5 1"}, []string{"13.1.5"}, ""},
		{"OKNewest", nil, []string{"erts-9.3/x", "erts-13.1.5/x", "erts-13.1/x"}, []string{"13.1.5"}, "took the newest"},
		{"OKNamedOfSeveral", nil, []string{"erts-9.3/x", "erts-13.1.5/x", "releases/start_erl.data=9.3 1"}, []string{"9.3"}, "start_erl.data names"},
		{"OKDirectoryBeforeStartData", nil, []string{"erts-13.1.5/x", "releases/start_erl.data=9.3 1"}, []string{"13.1.5"}, "names ERTS 9.3"},
		{"OKRel", nil, []string{rel("13.1.5"), "releases/x.rel"}, []string{"13.1.5"}, ".rel file"},
		{"OKGiven", []string{"15.0", "14.1", "15.0"}, []string{"releases/start_erl.data=9.3 1"}, []string{"14.1", "15.0"}, ""},
		{"OKGivenOther", []string{"15.0"}, []string{"erts-13.1.5/x"}, []string{"15.0"}, "made for ERTS 13.1.5"},
		{"OKNotAVersion", nil, []string{"erts-doc/x", "erts-13.1.5/x", "erts-14=file"}, []string{"13.1.5"}, ""},
		{"ErrNone", nil, []string{"x"}, nil, "--erts V"},
		{"ErrRelsDiffer", nil, []string{rel("13.1.5"), "releases/1/y.rel={erts,\"14.0\"}"}, nil, "--erts V"},
		{"ErrRelEvil", nil, []string{rel("../../x")}, nil, "--erts V"},
		{"ErrGivenEvil", []string{"../x"}, nil, nil, "../x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := append([]string{"releases/1/start.boot"}, c.files...)
			path := t.TempDir() + "/release"
			writeFile(t, path, string(makeTar(t, files(all...)...)))
			s, err := Open(t.Context(), path, Options{ERTS: c.given})
			if c.want == nil {
				wantError(t, err, eboot.ErrInvalid, c.text)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if f := s.Found(); !slices.Equal(f.ERTS, c.want) || !strings.Contains(strings.Join(f.Notes, "\n"), c.text) {
				t.Errorf("got %q with notes %q, want %q and a note of %q", f.ERTS, f.Notes, c.want, c.text)
			}
		})
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"5.10.4", "9.3", "9.3.3", "13.1", "13.1.5", "13.10", "15.0-rc1", "15.0-rc2", "15.0", "16.0"}
	for i, a := range sorted {
		for j, b := range sorted {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare %s with %s: got %d", a, b, got)
			}
		}
	}
}

func TestVariables(t *testing.T) {
	boot := script("$ROOT/lib/kernel/ebin", "$ROOT/lib/gone/ebin",
		"$RELEASE_LIB/x/ebin", "$RELEASE_LIB/../releases/1/consolidated", "$EXT/y-1/ebin", "$AWAY/z/ebin", "$not a name/x", "$EMPTY")
	s := mustOpenBytes(t, makeTar(t, files("releases/1/start.boot="+boot, "releases/1/consolidated/x.beam",
		"lib/kernel/ebin/x.beam", "lib/x/ebin/x.beam", "y-1/ebin/y.beam")...), Options{ERTS: []string{"13.1.5"}})
	want := []BootVariable{{"AWAY", ""}, {"EXT", "."}, {"RELEASE_LIB", "lib"}}
	if d := cmp.Diff(want, s.Found().Variables); d != "" {
		t.Error(d)
	}
	notes := strings.Join(s.Found().Notes, "\n")
	for _, text := range []string{"$ROOT/lib/gone/ebin", "-boot_var AWAY DIRECTORY", "-boot_var EXT ROOTDIR\n", "-boot_var RELEASE_LIB ROOTDIR/lib"} {
		if !strings.Contains(notes, text) {
			t.Errorf("notes do not say %q:\n%s", text, notes)
		}
	}
}

// A script that uses more variables than any real one costs no more than that.
func TestVariablesAreBounded(t *testing.T) {
	var paths []string
	for i := range 3 * maxVariablePaths {
		paths = append(paths, fmt.Sprintf("$V%d/%d", i%100, i))
	}
	found := bootVariables([]byte(script(paths...)))
	total := 0
	for _, p := range found {
		total += len(p)
	}
	if len(found) > maxVariables || total > maxVariablePaths {
		t.Errorf("got %d variables with %d paths", len(found), total)
	}
}

func TestWarningsAreBounded(t *testing.T) {
	var links []entry
	for i := range 10 * maxWarnings {
		links = append(links, link(fmt.Sprintf("l%d", i), "nothing"))
	}
	warnings := 0
	if _, err := openBytes(t.Context(), makeTar(t, good(links...)...), Options{Warn: func(string) { warnings++ }}); err != nil {
		t.Fatal(err)
	}
	if warnings != maxWarnings {
		t.Errorf("got %d warnings, want %d", warnings, maxWarnings)
	}
}
