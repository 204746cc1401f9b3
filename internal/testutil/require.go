package testutil

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Erlang is an Erlang/OTP installation of this machine.
type Erlang struct {
	Root string // code:root_dir(), such as /usr/lib/erlang, symlinks resolved
	ERTS string // version of the emulator, such as 13.1.5

	// Chroot is the directory in which its programs run, when it is the installation of
	// another system below that directory (EBOOT_TEST_ERL_ROOT, scripts/otp). They see their own files
	// there, Root among them, by the same names as this process, and its temporary files, too.
	Chroot string
}

// ERTSDir is the directory of the emulator, such as /usr/lib/erlang/erts-13.1.5.
func (e Erlang) ERTSDir() string { return filepath.Join(e.Root, "erts-"+e.ERTS) }

// BootScript is the boot script a node without flags asks for.
func (e Erlang) BootScript() string { return filepath.Join(e.Root, "bin", "start.boot") }

// RequireErl finds the Erlang on PATH, or that of the system below EBOOT_TEST_ERL_ROOT, an
// absolute path. Without one the test is skipped, or fails when EBOOT_REQUIRE_ERL=1 says that there
// must be one.
func RequireErl(t testing.TB) Erlang {
	t.Helper()
	erl, err := installation()
	switch {
	case err == nil:
	case os.Getenv("EBOOT_REQUIRE_ERL") == "1":
		t.Fatalf("EBOOT_REQUIRE_ERL=1, but %v", err)
	default:
		t.Skipf("needs an Erlang installation: %v", err)
	}
	return erl
}

// installation asks erl once for the whole run: its own word is slower than reading
// the erl script, but scripts differ from one distribution to the next.
var installation = sync.OnceValues(func() (Erlang, error) {
	chroot := os.Getenv("EBOOT_TEST_ERL_ROOT")
	erl, err := "/usr/bin/erl", error(nil)
	if chroot == "" {
		erl, err = exec.LookPath("erl")
	}
	if err != nil {
		return Erlang{}, err
	}
	cmd := exec.Command(erl, "-noinput", "-boot", "start_clean", "-eval",
		`io:format("~s ~ts~n", [erlang:system_info(version), code:root_dir()]), halt(0).`)
	cmd.Env = append(os.Environ(), "ERL_CRASH_DUMP_SECONDS=0")
	if chroot != "" {
		cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: chroot}
	}
	out, err := cmd.Output()
	if err != nil {
		return Erlang{}, fmt.Errorf("%s%s does not run: %w", chroot, erl, err)
	}
	version, root, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok {
		return Erlang{}, fmt.Errorf("%s said %q", erl, out)
	}
	if root, err = filepath.EvalSymlinks(filepath.Join(chroot, root)); err != nil {
		return Erlang{}, err
	}
	e := Erlang{Root: root, ERTS: version, Chroot: chroot}
	_, err = os.Stat(filepath.Join(e.ERTSDir(), "bin", "erlexec"))
	return e, err
})

// command is a program of the installation, to be started by Spawn. Its directory must be a
// temporary one.
func (e Erlang) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: e.Chroot}
	return cmd
}

// Run runs the erl of the installation with its own code in a temporary directory, until it
// ends, and returns what it printed. One that fails fails the test.
func (e Erlang) Run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := e.command(e.program(), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LANG=C.UTF-8", "ERL_CRASH_DUMP_SECONDS=0")
	p := startProcess(t, cmd, nil)
	<-p.done
	if p.err != nil {
		t.Fatalf("erl %s: %v\n%s", strings.Join(args, " "), p.err, p.out.String())
	}
	return p.out.String()
}

// program is the erl script. It knows its Root by the name inside the chroot, where both are
// the same.
func (e Erlang) program() string { return filepath.Join(e.Root, "bin", "erl") }

// RequireNetwork skips a test that builds networks where that cannot be done: it needs
// root, and the programs ip and nft. EBOOT_REQUIRE_ERL=1 says that it must be possible,
// and makes it a failure.
func RequireNetwork(t testing.TB) {
	t.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, "the program "+program)
		}
	}
	switch {
	case len(missing) == 0:
	case os.Getenv("EBOOT_REQUIRE_ERL") == "1":
		t.Fatalf("EBOOT_REQUIRE_ERL=1, but to build a network of hosts this lacks %s", strings.Join(missing, ", "))
	default:
		t.Skipf("needs %s, to build a network of hosts", strings.Join(missing, ", "))
	}
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
