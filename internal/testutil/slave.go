package testutil

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SlaveOptions say how a slave is started.
type SlaveOptions struct {
	Hosts []string // -hosts, in this order

	// Root is the ROOTDIR of the slave: what $ROOT means in its boot script and in
	// every path it asks for. It need not exist. Empty: BareRoot, a directory that
	// exists but holds no Erlang code.
	Root string

	Embedded bool     // -mode embedded; otherwise interactive, the default of erl
	Args     []string // further flags, before -eval
	Env      []string // further variables, "NAME=value"

	// Eval is evaluated once the node is up; it should end the node. Empty: a report
	// for Slave.Report, then halt(0).
	Eval string

	// Namespace, when set, is where the slave runs: beside the BootServer there.
	Namespace *Namespace
}

// Slave is a running, unmodified Erlang node that takes all its code from a boot
// server: its emulator is local, as on a real diskless host, and nothing else is.
type Slave struct {
	t       testing.TB
	process *process
	started time.Time
}

// reportEval prints what Report reads. lists and io come through the loader like
// everything else.
const reportEval = `
	[io:format("~nloaded ~ts ~ts", [M, case F of L when is_list(L) -> L; A -> atom_to_list(A) end]) || {M, F} <- code:all_loaded()],
	[io:format("~npath ~ts", [P]) || P <- code:get_path()],
	io:format("~nroot ~ts", [code:root_dir()]),
	io:format("~nmode ~w", [code:get_mode()]),
	io:format("~nreported ok~n"),
	halt(0).`

// BareRoot makes a directory that a slave can use as its ROOTDIR: it holds the
// emulator's binaries and not one module, boot script or application.
func BareRoot(t testing.TB, erl Erlang) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	linkEmulator(t, erl, root)
	return root
}

// linkEmulator puts a copy of the emulator's bin directory below dir, as symlinks
// of its files, and returns it. A symlink of the whole directory would do as well; links
// of the files keep `BINDIR/..` free of erts' own lib, include and src.
func linkEmulator(t testing.TB, erl Erlang, dir string) string {
	t.Helper()
	from := filepath.Join(erl.ERTSDir(), "bin")
	to := filepath.Join(dir, "erts-"+erl.ERTS, "bin")
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// StartSlave starts a node. The erl script of the installation is not used: it sets
// ROOTDIR to the installation itself. What it does otherwise (erlexec with ROOTDIR, BINDIR,
// EMU and PROGNAME) is done here.
func StartSlave(t testing.TB, erl Erlang, opts SlaveOptions) *Slave {
	t.Helper()
	home := t.TempDir()
	root := opts.Root
	if root == "" {
		root = BareRoot(t, erl)
	}
	bindir := linkEmulator(t, erl, home)
	args := append([]string{"-loader", "inet", "-id", "x", "-noinput", "-hosts"}, opts.Hosts...)
	if opts.Embedded {
		args = append(args, "-mode", "embedded")
	}
	args = append(args, opts.Args...)
	eval := opts.Eval
	if eval == "" {
		eval = reportEval
	}
	args = append(args, "-eval", strings.Join(strings.Fields(eval), " "))
	cmd := erl.command(filepath.Join(bindir, "erlexec"), args...)
	cmd.Dir = home
	// Nothing of the caller's environment: ERL_LIBS, ERL_FLAGS and the like would
	// bring local code in.
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8", "TZ=UTC",
		"ROOTDIR=" + root, "BINDIR=" + bindir, "EMU=beam", "PROGNAME=erl",
		"ERL_CRASH_DUMP_SECONDS=0",
	}
	cmd.Env = append(cmd.Env, opts.Env...)
	s := &Slave{t: t, started: time.Now()}
	s.process = startProcess(t, cmd, opts.Namespace)
	return s
}

// Output is what the node has printed until now, on both channels.
func (s *Slave) Output() string { return s.process.out.String() }

// PID is the process id of the emulator.
func (s *Slave) PID() int { return s.process.cmd.Process.Pid }

// Kill ends the node without a word and waits.
func (s *Slave) Kill() { s.process.kill() }

// Exited reports whether the node has ended.
func (s *Slave) Exited() bool { return s.process.exited() }

// Exit is how a node ended.
type Exit struct {
	Status int           // exit status; -1 when a signal ended it
	Took   time.Duration // from start of the process to its end
	Output string
}

// Wait waits for the node to end by itself. At the deadline the test fails, with
// the node's output.
func (s *Slave) Wait(deadline time.Duration) Exit {
	s.t.Helper()
	timer := time.NewTimer(time.Until(s.started.Add(deadline)))
	defer timer.Stop()
	select {
	case <-s.process.done:
	case <-timer.C:
		s.t.Fatalf("node still runs after %v; its output:\n%s", deadline, s.Output())
	}
	return Exit{
		Status: s.process.cmd.ProcessState.ExitCode(),
		Took:   time.Since(s.started),
		Output: s.Output(),
	}
}

// Report is what a node without Eval says of itself.
type Report struct {
	Root    string            // code:root_dir()
	Mode    string            // interactive or embedded
	Path    []string          // code:get_path()
	Modules map[string]string // loaded modules and where each came from; "preloaded" for the emulator's own
	Took    time.Duration     // from start to exit of the process
}

// Report waits for a node that was started without Eval, checks that it ended well
// and returns what it said.
func (s *Slave) Report(deadline time.Duration) Report {
	s.t.Helper()
	exit := s.Wait(deadline)
	if exit.Status != 0 || !strings.Contains(exit.Output, "reported ok") {
		s.t.Fatalf("node ended with status %d; its output:\n%s", exit.Status, exit.Output)
	}
	r, err := parseReport(exit.Output)
	if err != nil {
		s.t.Fatalf("%v; its output:\n%s", err, exit.Output)
	}
	r.Took = exit.Took
	return r
}

func parseReport(output string) (Report, error) {
	r := Report{Modules: map[string]string{}}
	lines := bufio.NewScanner(strings.NewReader(output))
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "loaded":
			module, source, ok := strings.Cut(rest, " ")
			if !ok {
				return Report{}, fmt.Errorf("report line %q", lines.Text())
			}
			r.Modules[module] = source
		case "path":
			r.Path = append(r.Path, rest)
		case "root":
			r.Root = rest
		case "mode":
			r.Mode = rest
		}
	}
	if len(r.Modules) == 0 || r.Root == "" {
		return Report{}, fmt.Errorf("node reported no modules")
	}
	return r, lines.Err()
}

// Local returns the modules that cannot have come over the wire: those whose source
// is neither the emulator itself nor a path below root.
func (r Report) Local(root string) []string {
	var local []string
	for module, source := range r.Modules {
		if source != "preloaded" && !strings.HasPrefix(source, root+"/") {
			local = append(local, module+" from "+source)
		}
	}
	return local
}
