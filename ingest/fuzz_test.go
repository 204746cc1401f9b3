package ingest

import (
	"archive/tar"
	"errors"
	"os"
	"testing"

	"eboot"
)

// Whatever stands in a file, Open ends with a tree that may be published or
// with an error that says what is wrong with the input.
func FuzzBundleTar(f *testing.F) {
	release, err := os.ReadFile("testdata/release.tar.gz") // by systools:make_tar, most modules taken out
	if err != nil {
		f.Fatal(err)
	}
	f.Add(release, "")
	f.Add(release, "releases/1.0.0/start")
	inner := gzipped(f, makeTar(f, entry{name: "x-1/ebin/x.beam", body: "beam"}))
	seeds := [][]entry{
		good(),
		good(dirEntry("d/"), link("l", "lib/a"), hardLink("h", "lib/a"), entry{name: "releases/COOKIE", body: "s"}),
		good(link("l", "../x"), link("lib/m", "../lib/./a")),
		good(typed("dev", tar.TypeChar), entry{name: "/abs"}),
		good(entry{name: "EXT.tar.gz", body: string(inner)}, entry{name: "bin/start.boot", body: script("$EXT/x-1/ebin")}),
		{{name: "top/releases/1/start.boot", body: script()}, {name: "top/erts-13.1.5/x"}},
		good(entry{name: "long", header: func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"} }}),
	}
	for _, s := range seeds {
		data := makeTar(f, s...)
		f.Add(data, "")
		f.Add(gzipped(f, data), "bin/start")
		f.Add(zstdFrame(f, data), "")
	}
	limits := Limits{Entries: 1000, FileSize: 1 << 20, TreeBytes: 4 << 20, RatioAfter: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte, boot string) {
		s, err := openBytes(t.Context(), data, Options{Boot: boot, Limits: limits})
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) && !errors.Is(err, eboot.ErrTooLarge) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		m := s.Manifest()
		if _, err := eboot.ParseManifest(m.Encode()); err != nil {
			t.Errorf("accepted what a server refuses: %v", err)
		}
		if len(s.Times()) != len(m.Entries) || len(m.Entries) > limits.Entries {
			t.Errorf("%d entries, %d times, at most %d", len(m.Entries), len(s.Times()), limits.Entries)
		}
		if files, size := m.Totals(); size > limits.TreeBytes || files != s.Found().Files || size != s.Found().Bytes {
			t.Errorf("%d files of %d bytes, found says %+v", files, size, s.Found())
		}
		found := s.Found()
		for _, p := range []string{found.BootScript, found.SysConfig} {
			if e := m.Find(p); p != "" && (e == nil || e.Kind != eboot.KindFile) {
				t.Errorf("%q is not a file of the tree", p)
			}
		}
		for _, v := range found.ERTS {
			if eboot.CheckERTS(v) != nil {
				t.Errorf("found ERTS %q", v)
			}
		}
		collect(t, s)
	})
}
