package bundlefs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"eboot"
)

// listing makes a manifest of lines: "d PATH", "f PATH CONTENT", "x PATH CONTENT", "l PATH TARGET".
func listing(t *testing.T, lines ...string) *eboot.Manifest {
	t.Helper()
	m := &eboot.Manifest{}
	for _, line := range lines {
		part := strings.Fields(line)
		e := eboot.ManifestEntry{Path: part[1], Kind: eboot.Kind(part[0][0])}
		switch part[0] {
		case "x", "f":
			e.Kind, e.Exec = eboot.KindFile, part[0] == "x"
			e.Size, e.Digest = int64(len(part[2])), eboot.DigestOf([]byte(part[2]))
		case "l":
			e.Target = part[2]
		}
		m.Entries = append(m.Entries, e)
	}
	m.Sort()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCompare(t *testing.T) {
	from := listing(t, "d lib", "d lib/a-1", "f lib/a-1/same x", "f lib/a-1/old x", "f lib/a-1/other x", "f lib/a-1/run x", "l lib/a-1/link same",
		"d lib/a-1/thing", "f lib/a-10 x", "f lib/a-1.ez x", "f z x")
	to := listing(t, "d lib", "d lib/a-2", "f lib/a-2/same x", "f lib/a-2/new x", "f lib/a-2/other y", "x lib/a-2/run x", "l lib/a-2/link other",
		"f lib/a-2/thing x", "f lib/a-10 x", "f z x")
	for name, tc := range map[string]struct {
		from, to string
		want     []string
	}{
		"directories of other names": {"lib/a-1", "lib/a-2", []string{"link l l", "new - f", "old f -", "other f f", "run f f", "thing d f"}},
		"one is not there":           {"lib/a-3", "lib/a-2", []string{"link - l", "new - f", "other - f", "run - f", "same - f", "thing - f"}},
		"the other is not there":     {"lib/a-1/thing", "lib", []string{"a-10 - f", "a-2 - d", "a-2/link - l", "a-2/new - f", "a-2/other - f", "a-2/run - f", "a-2/same - f", "a-2/thing - f"}},
		"whole": {"", "", []string{"lib/a-1 d -", "lib/a-1.ez f -", "lib/a-1/link l -", "lib/a-1/old f -", "lib/a-1/other f -", "lib/a-1/run f -", "lib/a-1/same f -", "lib/a-1/thing d -",
			"lib/a-2 - d", "lib/a-2/link - l", "lib/a-2/new - f", "lib/a-2/other - f", "lib/a-2/run - f", "lib/a-2/same - f", "lib/a-2/thing - f"}},
	} {
		var got []string
		for path, p := range Compare(from, tc.from, to, tc.to) {
			letter := func(e *eboot.ManifestEntry) string {
				if e == nil {
					return "-"
				}
				return string(rune(e.Kind))
			}
			got = append(got, fmt.Sprint(path, " ", letter(p.From), " ", letter(p.To)))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s:\n got %q\nwant %q", name, got, tc.want)
		}
	}
	for path := range Compare(from, "", from, "") {
		t.Errorf("a tree differs from itself at %q", path)
	}
	for range Compare(from, "", to, "") {
		break // yielding on would panic
	}
}
