package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Erlang is an Erlang/OTP installation of this machine.
type Erlang struct {
	Root string // code:root_dir(), such as /usr/lib/erlang, symlinks resolved
	ERTS string // version of the emulator, such as 13.1.5
}

// ERTSDir is the directory of the emulator, such as /usr/lib/erlang/erts-13.1.5.
func (e Erlang) ERTSDir() string { return filepath.Join(e.Root, "erts-"+e.ERTS) }

// BootScript is the boot script a node without flags asks for.
func (e Erlang) BootScript() string { return filepath.Join(e.Root, "bin", "start.boot") }

// RequireErl finds the Erlang on PATH. Without one the test is skipped, or fails
// when EBOOT_REQUIRE_ERL=1 says that there must be one.
func RequireErl(t testing.TB) Erlang {
	t.Helper()
	missing := func(why string) {
		t.Helper()
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatalf("EBOOT_REQUIRE_ERL=1, but %s", why)
		}
		t.Skipf("needs an Erlang installation: %s", why)
	}
	erl, err := exec.LookPath("erl")
	if err != nil {
		missing("no erl on PATH")
	}
	// The installation's own word; parsing the erl script would be quicker but
	// differs from one distribution to the next.
	cmd := exec.Command(erl, "-noinput", "-boot", "start_clean", "-eval",
		`io:format("~s ~ts~n", [erlang:system_info(version), code:root_dir()]), halt(0).`)
	cmd.Env = append(os.Environ(), "ERL_CRASH_DUMP_SECONDS=0")
	out, err := cmd.Output()
	if err != nil {
		missing("erl does not run: " + err.Error())
	}
	version, root, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok {
		missing("erl said " + string(out))
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		missing(err.Error())
	}
	e := Erlang{Root: root, ERTS: version}
	if _, err := os.Stat(filepath.Join(e.ERTSDir(), "bin", "erlexec")); err != nil {
		missing(err.Error())
	}
	return e
}

// RequireRoot skips a test that needs network namespaces when it may not make them.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
}

// Poll waits until done returns true, and fails the test with reason at the deadline.
func Poll(t testing.TB, deadline time.Duration, reason string, done func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(end) {
			t.Fatalf("waited %v: %s", deadline, reason)
		}
		<-tick.C
	}
}
