package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"eboot"
	"eboot/api"
	"eboot/bootproto/etf"
)

// beamFile is a module with that code, compiled at some time.
func beamFile(code, compiled string) string {
	file := []byte("FOR1\x00\x00\x00\x00BEAM")
	for _, c := range [][2]string{{"AtU8", "\x00\x00\x00\x01\x01m"}, {"Code", code}, {"StrT", ""}, {"ImpT", ""}, {"ExpT", ""}, {"CInf", compiled}} {
		file = binary.BigEndian.AppendUint32(append(file, c[0]...), uint32(len(c[1])))
		file = append(append(file, c[1]...), make([]byte, -len(c[1])&3)...)
	}
	return string(file)
}

// bootScript is {script,{"r",Version},[{progress,Step},...]}.
func bootScript(version string, steps ...string) string {
	b := etf.AppendAtom(etf.AppendTuple([]byte{131}, 3), "script")
	b = etf.AppendName(etf.AppendName(etf.AppendTuple(b, 2), "r"), version)
	b = etf.AppendList(b, len(steps))
	for _, step := range steps {
		b = etf.AppendAtom(etf.AppendAtom(etf.AppendTuple(b, 2), "progress"), step)
	}
	return string(etf.AppendNil(b))
}

// version1 is a release; version2 differs from it in every way.
func version1() files {
	return files{
		"releases/1/start.boot":           bootScript("1", "a", "b", "c"),
		"releases/1/sys.config":           "[].",
		"releases/1/same":                 "same",
		"releases/1/consolidated/p.beam":  beamFile("p", "then"),
		"releases/1/consolidated/q.beam":  beamFile("q", "then"),
		"lib/app-1.0/ebin/app.app":        "vsn 1.0",
		"lib/app-1.0/ebin/changed.beam":   beamFile("old", "then"),
		"lib/app-1.0/ebin/same.beam":      beamFile("same", "then"),
		"lib/app-1.0/ebin/again.beam":     beamFile("again", "then"),
		"lib/app-1.0/ebin/removed.beam":   beamFile("removed", "then"),
		"lib/app-1.0/ebin/broken.beam":    "no beam",
		"lib/app-1.0/priv/same":           "same",
		"lib/gone-1/ebin/gone.beam":       beamFile("gone", "then"),
		"lib/gone-1/priv/file":            "file",
		"lib/plain/ebin/plain.beam":       beamFile("plain", "then"),
		"lib/quiet-1/ebin/quiet.beam":     beamFile("quiet", "then"),
		"lib/moved-1/ebin/moved.beam":     beamFile("moved", "then"),
		"lib/twice-1.0/ebin/twice.beam":   beamFile("twice", "then"),
		"lib/twice-2.0/ebin/twice.beam":   beamFile("twice", "later"),
		"lib/archive-1.ez":                "old archive",
		"erts-13.1.5/bin/beam.smp":        "emulator",
		"lib/files-1.0.0-rc.1/priv/table": "old",
	}
}

func version2() files {
	f := version1()
	for old, renamed := range map[string]string{"releases/1/": "releases/2/", "lib/app-1.0/": "lib/app-1.1/", "lib/moved-1/": "lib/moved-2/"} {
		for _, name := range slices.Collect(maps.Keys(f)) {
			if rest, ok := strings.CutPrefix(name, old); ok {
				f[renamed+rest] = f[name]
				delete(f, name)
			}
		}
	}
	maps.DeleteFunc(f, func(name, _ string) bool { return strings.HasPrefix(name, "lib/gone-1/") })
	delete(f, "lib/app-1.1/ebin/removed.beam")
	delete(f, "lib/archive-1.ez")
	maps.Copy(f, files{
		"releases/2/start.boot":           bootScript("2", "a", "x", "c", "d"),
		"releases/2/sys.config":           "[{a,[]}].",
		"releases/2/consolidated/p.beam":  beamFile("p", "now"),
		"releases/2/consolidated/q.beam":  beamFile("other", "now"),
		"lib/app-1.1/ebin/app.app":        "vsn 1.1",
		"lib/app-1.1/ebin/changed.beam":   beamFile("new", "now"),
		"lib/app-1.1/ebin/again.beam":     beamFile("again", "now"),
		"lib/app-1.1/ebin/added.beam":     beamFile("added", "now"),
		"lib/app-1.1/ebin/broken.beam":    "still no beam",
		"lib/fresh-1/ebin/fresh.beam":     beamFile("fresh", "now"),
		"lib/fresh-1/ebin/fresh.app":      "x",
		"lib/plain/ebin/plain.beam":       beamFile("other", "now"),
		"lib/quiet-1/ebin/quiet.beam":     beamFile("quiet", "now"),
		"lib/files-1.0.0-rc.1/priv/table": "new",
		"etc/new":                         "new",
	})
	return f
}

// publishTree publishes f as app@version for the ERTS versions; its boot script is in releases/VERSION.
func (s *server) publishTree(t *testing.T, f files, version string, erts ...string) {
	t.Helper()
	p := api.Publish{Ref: app(version), ERTS: erts, BootScript: "releases/" + version + "/start.boot", SysConfig: "releases/" + version + "/sys.config", Source: f}
	if _, err := s.client.Publish(t.Context(), p); err != nil {
		t.Fatalf("publish app@%s: %v", version, err)
	}
}

func TestDiffBundles(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	s.publishTree(t, version1(), "1", testERTS)
	s.publishTree(t, version2(), "2", testERTS)
	got, err := s.DiffBundles(t.Context(), app("1"), app("2"), "")
	if err != nil {
		t.Fatal(err)
	}
	want := api.BundleDiff{
		From: app("1"), To: app("2"), ERTS: testERTS,
		Applications: []api.ApplicationDiff{
			{Name: "app", Change: api.Changed, From: "1.0", To: "1.1", Recompiled: 1, Modules: []api.ModuleDiff{
				{Module: "added", Change: api.Added}, {Module: "broken", Change: api.Changed}, {Module: "changed", Change: api.Changed}, {Module: "removed", Change: api.Removed}}},
			{Name: "files", Change: api.Changed, From: "1.0.0-rc.1", To: "1.0.0-rc.1", Modules: []api.ModuleDiff{}},
			{Name: "fresh", Change: api.Added, To: "1", Modules: []api.ModuleDiff{{Module: "fresh", Change: api.Added}}},
			{Name: "gone", Change: api.Removed, From: "1", Modules: []api.ModuleDiff{{Module: "gone", Change: api.Removed}}},
			{Name: "moved", Change: api.Changed, From: "1", To: "2", Modules: []api.ModuleDiff{}},
			{Name: "plain", Change: api.Changed, Modules: []api.ModuleDiff{{Module: "plain", Change: api.Changed}}},
		},
		Files: []api.FileDiff{
			{Path: "etc/new", Change: api.Added},
			{Path: "lib/app-1.1/ebin/app.app", Change: api.Changed},
			{Path: "lib/archive-1.ez", Change: api.Removed},
			{Path: "lib/files-1.0.0-rc.1/priv/table", Change: api.Changed},
			{Path: "releases/2/consolidated/q.beam", Change: api.Changed},
			{Path: "releases/2/start.boot", Change: api.Changed},
			{Path: "releases/2/sys.config", Change: api.Changed},
		},
		Recompiled: 3, // again, quiet and p
		BootScript: api.BootScriptDiff{From: "releases/1/start.boot", To: "releases/2/start.boot", Changed: true, Lines: []string{
			`- {script,{"r","1"},...}`, `+ {script,{"r","2"},...}`, "- {progress,b}", "+ {progress,x}", "+ {progress,d}"}},
		SysConfigChanged: true,
	}
	if !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if same, err := s.DiffBundles(t.Context(), app("2"), app("2"), testERTS); err != nil || !same.Same() || same.Recompiled != 0 {
		t.Errorf("with itself: %+v, %v", same, err)
	}
}

func TestDiffBundlesOfOneERTS(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	s.publishTree(t, version1(), "1", "13.1.5", "14.0")
	s.publishTree(t, version2(), "2", "13.1.5", "14.0", "15.0")
	s.publish(t, "3", "") // for 13.1.5; its boot script is none
	for name, tc := range map[string]struct {
		to, erts string
		want     error
		text     string
	}{
		"given":          {"2", "14.0", nil, "14.0"},
		"the only one":   {"3", "", nil, "13.1.5"},
		"several":        {"2", "", eboot.ErrInvalid, "13.1.5, 14.0; say for which"},
		"not of one":     {"2", "15.0", eboot.ErrNotFound, "app@1 for ERTS 15.0"},
		"of neither":     {"3", "16.0", eboot.ErrNotFound, "16.0"},
		"no such bundle": {"9", "", eboot.ErrNotFound, "app@9"},
	} {
		got, err := s.DiffBundles(t.Context(), app("1"), app(tc.to), tc.erts)
		if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(got.ERTS, err), tc.text) {
			t.Errorf("%s: ERTS %q, %v", name, got.ERTS, err)
		}
	}
	diff, err := s.DiffBundles(t.Context(), app("2"), app("3"), "13.1.5")
	if script := diff.BootScript; err != nil || !script.Changed || len(script.Lines) > 0 || !strings.Contains(script.Warning, "releases/1/start.boot") {
		t.Errorf("a script that is none: %+v, %v", script, err)
	}
	s.publishTree(t, files{"releases/4/start.boot": "4", "releases/4/sys.config": "[]."}, "4", "99.0")
	if _, err := s.DiffBundles(t.Context(), app("3"), app("4"), ""); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), "none of these") {
		t.Errorf("no version in common: %v", err)
	}
}

// What cannot be read here is no bundle that does not exist, and nothing that is equal.
func TestDiffBundlesWithoutContent(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.publishTree(t, version1(), "1", testERTS)
	s.publishTree(t, version2(), "2", testERTS)
	name := blobPath(c.DataDir, eboot.DigestOf([]byte(beamFile("old", "then"))))
	if err := os.Rename(name, filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	_, err := s.DiffBundles(t.Context(), app("1"), app("2"), "")
	if !errors.Is(err, eboot.ErrUnavailable) || errors.Is(err, eboot.ErrNotFound) || !strings.Contains(err.Error(), "changed.beam") {
		t.Errorf("a blob is gone: %v", err)
	}
	spoil(t, blobPath(c.DataDir, eboot.DigestOf([]byte(beamFile("new", "now")))))
	if _, err := s.DiffBundles(t.Context(), app("2"), app("1"), ""); !errors.Is(err, eboot.ErrDamaged) {
		t.Errorf("a blob is damaged: %v", err)
	}
}

func TestPairApplications(t *testing.T) {
	list := func(dirs string) []application {
		m := &eboot.Manifest{}
		for _, d := range strings.Fields(dirs) {
			m.Entries = append(m.Entries, eboot.ManifestEntry{Path: "lib/" + d, Kind: eboot.KindDirectory})
		}
		return applications(m)
	}
	for _, tc := range []struct{ from, to, want string }{
		{"a-1", "a-1", "a-1=a-1"},
		{"a-1 b-1", "a-2 c-1", "a-1=a-2 b-1=- -=c-1"},
		{"a-1 a-2", "a-2 a-3", "a-1=a-3 a-2=a-2"},
		{"a-1", "a-1 a-2", "a-1=a-1 -=a-2"},
		{"a", "a-1", "a=a-1"},
		{"my-app-1.0-rc", "my-app-1.1", "my-app-1.0-rc=my-app-1.1"},
		{"-1 1-", "", "-1=- 1-=-"},
	} {
		var got []string
		for _, p := range pairApplications(list(tc.from), list(tc.to)) {
			var text [2]string
			for i, a := range p {
				if text[i] = strings.TrimPrefix(a.dir, "lib/"); a.absent {
					text[i] = "-"
				}
			}
			got = append(got, text[0]+"="+text[1])
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%q and %q: %q, want %q", tc.from, tc.to, got, tc.want)
		}
	}
}

// Applying what diffLines says to a gives b, and nothing shorter does.
func TestDiffLines(t *testing.T) {
	for _, tc := range []struct{ a, b, want string }{
		{"", "", ""},
		{"abc", "abc", ""},
		{"", "ab", "+a +b"},
		{"ab", "", "-a -b"},
		{"abc", "axc", "-b +x"},
		{"abcd", "bd", "-a -c"},
		{"bd", "abcd", "+a +c"},
		{"abcabba", "cbabac", "-a +c -c -b +c"},
	} {
		var got []string
		for _, line := range diffLines(strings.Split(tc.a, ""), strings.Split(tc.b, "")) {
			got = append(got, strings.ReplaceAll(line, " ", ""))
		}
		if !leads(tc.a, tc.b, got) || len(got) != len(strings.Fields(tc.want)) {
			t.Errorf("%s to %s: %q, want what is as short as %q", tc.a, tc.b, got, tc.want)
		}
	}
	many := func(letter string) (lines []string) {
		for i := range 3000 {
			lines = append(lines, fmt.Sprint(letter, i))
		}
		return append(lines, "end")
	}
	if got := diffLines(many("a"), many("b")); len(got) != 6000 || got[0] != "- a0" || got[3000] != "+ b0" {
		t.Errorf("too many to be compared: %d lines, %q", len(got), got[:1])
	}
}

// leads reports whether a becomes b by what lines say. They do not say where they stand:
// every way to keep a letter before the next of them is tried.
func leads(a, b string, lines []string) bool {
	switch {
	case len(lines) == 0:
		return a == b
	case lines[0][0] == '+' && strings.HasPrefix(b, lines[0][1:]) && leads(a, b[1:], lines[1:]):
		return true
	case lines[0][0] == '-' && strings.HasPrefix(a, lines[0][1:]) && leads(a[1:], b, lines[1:]):
		return true
	}
	return a != "" && b != "" && a[0] == b[0] && leads(a[1:], b[1:], lines)
}
