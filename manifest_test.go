package eboot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"eboot"
	"eboot/internal/testutil"
)

func sampleManifest() *eboot.Manifest {
	d := eboot.DigestOf([]byte("content"))
	return &eboot.Manifest{Entries: []eboot.ManifestEntry{
		{Path: "a\\b\nc", Kind: eboot.KindFile, Size: 7, Digest: d},
		{Path: "bin", Kind: eboot.KindDirectory},
		{Path: "bin/erl", Kind: eboot.KindFile, Exec: true, Size: 7, Digest: d},
		{Path: "bin/link", Kind: eboot.KindSymlink, Target: "../lib/a b"},
		{Path: "grüße €", Kind: eboot.KindFile, Digest: eboot.DigestOf(nil)},
	}}
}

func TestManifestRoundTrip(t *testing.T) {
	m := sampleManifest()
	got, err := eboot.ParseManifest(m.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" {
		t.Error(diff)
	}
	if files, size := got.Totals(); files != 3 || size != 14 {
		t.Errorf("Totals = %d, %d", files, size)
	}
	if e := got.Find("bin/link"); e == nil || e.Target != "../lib/a b" {
		t.Errorf("Find(bin/link) = %v", e)
	}
	if e := got.Find("bin/none"); e != nil {
		t.Errorf("Find(bin/none) = %v", e)
	}
}

// The identity of a bundle must not move between releases: stored manifests and
// signatures refer to it.
func TestManifestDigestIsStable(t *testing.T) {
	const want = "df5068c3c7b6"
	if got := eboot.DigestOf(sampleManifest().Encode()).Short(); got != want {
		t.Errorf("digest of the sample manifest = %s, want %s: the encoding changed", got, want)
	}
}

func TestManifestRefuses(t *testing.T) {
	d := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		text string
		want error
	}{
		"NoMagic":            {"d a\n", eboot.ErrInvalid},
		"CutOff":             {"eboot-manifest 1\nd a", eboot.ErrInvalid},
		"UnknownKind":        {"eboot-manifest 1\nq a\n", eboot.ErrInvalid},
		"Unsorted":           {"eboot-manifest 1\nd b\nd a\n", eboot.ErrInvalid},
		"Duplicate":          {"eboot-manifest 1\nd a\nd a\n", eboot.ErrInvalid},
		"NoParent":           {"eboot-manifest 1\nd a/b\n", eboot.ErrInvalid},
		"ParentIsFile":       {"eboot-manifest 1\nf 0 " + d + " a\nd a/b\n", eboot.ErrInvalid},
		"Absolute":           {"eboot-manifest 1\nd /a\n", eboot.ErrInvalid},
		"DotDot":             {"eboot-manifest 1\nd ..\n", eboot.ErrInvalid},
		"DotDotInside":       {"eboot-manifest 1\nd a\nd a/../b\n", eboot.ErrInvalid},
		"NotClean":           {"eboot-manifest 1\nd a\nd a//b\n", eboot.ErrInvalid},
		"NotUTF8":            {"eboot-manifest 1\nd a\xff\n", eboot.ErrInvalid},
		"NUL":                {"eboot-manifest 1\nd a\x00b\n", eboot.ErrInvalid},
		"Cookie":             {"eboot-manifest 1\nd releases\nf 0 " + d + " releases/COOKIE\n", eboot.ErrInvalid},
		"DeepCookie":         {"eboot-manifest 1\nd app\nd app/releases\nf 0 " + d + " app/releases/COOKIE\n", eboot.ErrInvalid},
		"HomeCookie":         {"eboot-manifest 1\nf 0 " + d + " .erlang.cookie\n", eboot.ErrInvalid},
		"LeadingZeroSize":    {"eboot-manifest 1\nf 01 " + d + " a\n", eboot.ErrInvalid},
		"NegativeSize":       {"eboot-manifest 1\nf -1 " + d + " a\n", eboot.ErrInvalid},
		"HugeFile":           {"eboot-manifest 1\nf 4294967296 " + d + " a\n", eboot.ErrTooLarge},
		"HugeTree":           {"eboot-manifest 1\n" + hugeTree(d), eboot.ErrTooLarge},
		"UpperCaseDigest":    {"eboot-manifest 1\nf 0 " + strings.ToUpper(d) + " a\n", eboot.ErrInvalid},
		"LinkWithoutTarget":  {"eboot-manifest 1\nl a\x00\n", eboot.ErrInvalid},
		"BadEscape":          {"eboot-manifest 1\nd a\\x\n", eboot.ErrInvalid},
		"LongPath":           {"eboot-manifest 1\nd " + strings.Repeat("a", 5000) + "\n", eboot.ErrTooLarge},
		"TooManyEntries":     {"eboot-manifest 1\n" + strings.Repeat("\n", eboot.MaxTreeEntries+1), eboot.ErrTooLarge},
		"DirectoryTrailing/": {"eboot-manifest 1\nd a/\n", eboot.ErrInvalid},
	} {
		t.Run("Err"+name, func(t *testing.T) {
			if _, err := eboot.ParseManifest([]byte(tc.text)); !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
		})
	}
}

func hugeTree(digest string) string {
	var b strings.Builder
	for i := range 6 {
		fmt.Fprintf(&b, "f 4294967000 %s f%d\n", digest, i)
	}
	return b.String()
}

func TestTimes(t *testing.T) {
	times := []int64{0, -5, 1<<40 + 3}
	got, err := eboot.ParseTimes(eboot.EncodeTimes(times), len(times))
	if err != nil || !cmp.Equal(times, got) {
		t.Errorf("ParseTimes = %v, %v", got, err)
	}
	for _, text := range []string{"", "eboot-times 1\n1\n2\n", "eboot-times 1\nx\n2\n3\n", "eboot-times 1\n1\n2\n3\n4", "eboot-times 1\n01\n2\n3\n"} {
		if _, err := eboot.ParseTimes([]byte(text), 3); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("ParseTimes(%q) error = %v", text, err)
		}
	}
}

// A manifest is read as the one text that it has, or refused; no path of it leads out of
// the tree, and what is set aside for it is in proportion to its bytes.
func FuzzManifest(f *testing.F) {
	f.Add(recorded(f, "greeter.manifest"))
	f.Add(sampleManifest().Encode())
	f.Add([]byte("eboot-manifest 1\nl a\x00b\n"))
	f.Add([]byte("eboot-manifest 1\n" + strings.Repeat("\n", 1000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m *eboot.Manifest
		var err error
		if got := testutil.Allocated(func() { m, err = eboot.ParseManifest(data) }); got > uint64(64*len(data)+1<<20) {
			t.Errorf("%d bytes set aside for %d", got, len(data))
		}
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		for _, e := range m.Entries {
			if !filepath.IsLocal(e.Path) || path.Clean(e.Path) != e.Path || strings.ContainsRune(e.Path, 0) {
				t.Errorf("a path %q", e.Path)
			}
		}
		if got := m.Encode(); string(got) != string(data) {
			t.Errorf("accepted %q, which encodes as %q: two spellings of one tree", data, got)
		}
	})
}

// recorded is a file that a server keeps for the release of test/fixtures.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func FuzzTimes(f *testing.F) {
	f.Add(recorded(f, "greeter.times"), bytes.Count(recorded(f, "greeter.times"), []byte{'\n'})-1)
	f.Add(eboot.EncodeTimes([]int64{1, 2}), 2)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		if n < 0 || n > 1000 {
			return
		}
		if times, err := eboot.ParseTimes(data, n); err == nil && string(eboot.EncodeTimes(times)) != string(data) {
			t.Errorf("accepted %q as %v", data, times)
		}
	})
}
