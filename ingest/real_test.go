package ingest_test

import (
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"eboot"
	"eboot/ingest"
	"eboot/test/fixtures"
)

func open(t testing.TB, path string, opts ingest.Options) *ingest.Source {
	t.Helper()
	s, err := ingest.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// What the tools of today make is told apart and found in.
func TestRealReleases(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(testing.TB, string) string
		opts ingest.Options
		want ingest.Found // ERTS, Files and Bytes are the machine's
		has  string
		warn []string
	}{
		{"Systools", fixtures.Systools, ingest.Options{}, ingest.Found{
			BootScript: "releases/1.0.0/start.boot", SysConfig: "releases/1.0.0/sys.config", Layout: ingest.LayoutSystools,
			Variables: []ingest.BootVariable{{Name: "EXT", Directory: "."}},
			Notes: []string{"merged EXT.tar.gz, the variable tar of $EXT, into the root of the bundle",
				"the boot script uses $EXT, which eboot's loader finds; with `loader: stock`, slaves need -boot_var EXT ROOTDIR"},
		}, "greeter-1.0.0/ebin/greeter.beam", nil},
		{"Mix", fixtures.Mix, ingest.Options{}, ingest.Found{
			BootScript: "releases/1.0.0/start.boot", SysConfig: "releases/1.0.0/sys.config", Layout: ingest.LayoutMix,
			Variables: []ingest.BootVariable{{Name: "RELEASE_LIB", Directory: "lib"}},
			Notes: []string{"left out releases/COOKIE: a cookie is a secret",
				"the boot script uses $RELEASE_LIB, which eboot's loader finds; with `loader: stock`, slaves need -boot_var RELEASE_LIB ROOTDIR/lib"},
		}, "lib/greeter-1.0.0/ebin/Elixir.Greeter.Application.beam", nil},
		{"Rebar3", fixtures.Rebar3, ingest.Options{}, ingest.Found{
			BootScript: "releases/1.0.0/start.boot", SysConfig: "releases/1.0.0/sys.config", Layout: ingest.LayoutRebar3,
		}, "lib/greeter-1.0.0/ebin/greeter.beam", nil},
		{"Rebar3Development", fixtures.Rebar3Development, ingest.Options{Dereference: true}, ingest.Found{
			BootScript: "releases/1.0.0/start.boot", SysConfig: "releases/1.0.0/sys.config", Layout: ingest.LayoutRebar3,
		}, "lib/greeter-1.0.0/ebin/greeter.beam", []string{ // rebar3 links directories that the application does not have
			"symlink lib/greeter-1.0.0/include: nothing stands at ../../../../include in the bundle; it is kept",
			"symlink lib/greeter-1.0.0/priv: nothing stands at ../../../../priv in the bundle; it is kept",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			erlang := fixtures.FindErlang(t)
			var warnings []string
			c.opts.Warn = func(text string) { warnings = append(warnings, text) }
			path := c.make(t, t.TempDir())
			if c.opts.Dereference { // links to the applications: refused without the flag, by its name
				if _, err := ingest.Open(t.Context(), path, ingest.Options{}); err == nil || !strings.Contains(err.Error(), "--dereference") {
					t.Errorf("without the flag: got %v", err)
				}
			}
			s := open(t, path, c.opts)
			if d := cmp.Diff(c.warn, warnings); d != "" {
				t.Errorf("warnings: %s", d)
			}
			got := s.Found()
			if !slices.Equal(got.ERTS, []string{erlang.ERTS}) || got.Files < 100 || got.Bytes < 1<<20 {
				t.Errorf("got ERTS %q, %d files, %d bytes", got.ERTS, got.Files, got.Bytes)
			}
			got.ERTS, got.Files, got.Bytes = nil, 0, 0
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if e := s.Manifest().Find(c.has); e == nil || e.Kind != eboot.KindFile {
				t.Errorf("%s is not in the tree", c.has)
			}
		})
	}
}

func TestInstalledOTP(t *testing.T) {
	erlang := fixtures.FindErlang(t)
	s := open(t, erlang.Root, ingest.Options{Dereference: true})
	f := s.Found()
	if f.Layout != ingest.LayoutOTP || !slices.Equal(f.ERTS, []string{erlang.ERTS}) || len(f.Variables) != 0 {
		t.Errorf("got %+v", f)
	}
	if e := s.Manifest().Find(f.BootScript); e == nil || filepath.Base(f.BootScript) != "start.boot" {
		t.Errorf("got boot script %q", f.BootScript)
	}
}

// The installed tree is the same bundle as GNU tar packs it.
func TestInstalledOTPPacked(t *testing.T) {
	erlang := fixtures.FindErlang(t)
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not on PATH")
	}
	want := eboot.DigestOf(open(t, erlang.Root, ingest.Options{Dereference: true}).Manifest().Encode())
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
	}{
		{"plain.tar", []string{"-c", "-h", "--ignore-failed-read", "-C", erlang.Root, "."}},
		{"gzip.tar.gz", []string{"-cz", "-h", "--ignore-failed-read", "-C", filepath.Dir(erlang.Root), filepath.Base(erlang.Root)}},
	} {
		path := filepath.Join(dir, c.name)
		if out, err := exec.Command("tar", append(c.args, "-f", path)...).CombinedOutput(); err != nil {
			t.Logf("tar: %v\n%s", err, out)
		}
		packed := open(t, path, ingest.Options{})
		// tar -h has copies where the tree has links, so compare what is the same in both.
		got := withoutLinks(open(t, erlang.Root, ingest.Options{Dereference: true}).Manifest(), packed.Manifest())
		if got != want {
			t.Errorf("%s: got tree %s, want %s", c.name, got.Short(), want.Short())
		}
	}
}

// withoutLinks returns the digest of packed with the links of m in the place
// of the copies that tar -h made of them.
func withoutLinks(m, packed *eboot.Manifest) eboot.Digest {
	mixed := &eboot.Manifest{}
	for _, e := range packed.Entries {
		if old := m.Find(e.Path); old != nil && old.Kind == eboot.KindSymlink {
			e = *old
		}
		mixed.Entries = append(mixed.Entries, e)
	}
	for _, e := range m.Entries {
		if e.Kind == eboot.KindSymlink && packed.Find(e.Path) == nil {
			mixed.Entries = append(mixed.Entries, e) // dangling: tar -h leaves it out
		}
	}
	mixed.Sort()
	return eboot.DigestOf(mixed.Encode())
}

func BenchmarkOpenOTP(b *testing.B) {
	erlang := fixtures.FindErlang(b)
	var f ingest.Found
	for b.Loop() {
		s, err := ingest.Open(b.Context(), erlang.Root, ingest.Options{Dereference: true})
		if err != nil {
			b.Fatal(err)
		}
		f = s.Found()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(f.Bytes)
	b.ReportMetric(float64(f.Files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

// The yardstick: the same files, one after the other, through sha256sum's loop.
func BenchmarkPlainSHA256(b *testing.B) {
	erlang := fixtures.FindErlang(b)
	s, err := ingest.Open(b.Context(), erlang.Root, ingest.Options{Dereference: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	f := s.Found()
	buffer := make([]byte, 256<<10)
	for b.Loop() {
		for _, e := range s.Manifest().Entries {
			if e.Kind == eboot.KindFile {
				hashFile(b, filepath.Join(erlang.Root, e.Path), e.Digest, buffer)
			}
		}
	}
	b.SetBytes(f.Bytes)
	b.ReportMetric(float64(f.Files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}

func hashFile(b *testing.B, path string, want eboot.Digest, buffer []byte) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buffer); err != nil {
		b.Fatal(err)
	}
	if eboot.Digest(h.Sum(nil)) != want {
		b.Fatalf("%s: other content", path)
	}
}
