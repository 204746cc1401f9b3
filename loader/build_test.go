package loader

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	for _, tc := range []struct{ erts, name string }{
		{"11.0", "eboot_loader.r23.beam"}, {"11.1.8", "eboot_loader.r23.beam"}, {"12.3.2.17", "eboot_loader.r23.beam"},
		{"13.0", "eboot_loader.beam"}, {"13.1.5", "eboot_loader.beam"}, {"15.0-rc1", "eboot_loader.beam"}, {"17.1.1", "eboot_loader.beam"}, {"100.0", "eboot_loader.beam"},
		{"10.7.2", ""}, {"", ""}, {"x", ""}, {"-13.1", ""},
	} {
		name, code, err := Build(tc.erts)
		if tc.name == "" {
			if !errors.Is(err, ErrERTS) {
				t.Errorf("ERTS %q: %s, %v; want ErrERTS", tc.erts, name, err)
			}
			continue
		}
		if err != nil || name != tc.name || !bytes.HasPrefix(code, []byte("FOR1")) || !bytes.Contains(code, []byte("eboot_loader")) {
			t.Errorf("ERTS %q: %s of %d bytes, %v; want %s", tc.erts, name, len(code), err, tc.name)
		}
	}
}

// TestBuildIsOfItsSource compiles the loader and compares it with what is embedded.
func TestBuildIsOfItsSource(t *testing.T) {
	skip := t.Skipf
	if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
		skip = t.Fatalf
	}
	for _, program := range []string{"erl", "erlc"} {
		if _, err := exec.LookPath(program); err != nil {
			skip("no compiler to compare with: %v", err)
		}
	}
	release, err := exec.Command("erl", "-noshell", "-eval", "io:put_chars(erlang:system_info(otp_release)), halt().").Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(release) != "25" {
		t.Skipf("the loader's beams are made with OTP 25, and this is OTP %s", release)
	}
	dir := t.TempDir()
	if out, err := exec.Command("../scripts/loader-beams", dir).CombinedOutput(); err != nil {
		t.Fatalf("loader-beams: %v\n%s", err, out)
	}
	for _, name := range glob(t, filepath.Join(dir, "*.beam")) {
		name = filepath.Base(name)
		embedded := beam
		if strings.Contains(name, "r23") {
			embedded = beamR23
		}
		if got := read(t, filepath.Join(dir, name)); string(got) != embedded {
			t.Errorf("%s is not made of loader/eboot_loader.erl: make loader", name)
		}
	}
}
