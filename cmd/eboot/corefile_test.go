package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// With dumping allowed and asked for (GOTRACEBACK=crash), a program of Go that is aborted
// leaves a core file, and eboot does not: the keys in its memory stay there. (S19)
func TestNoCoreFile(t *testing.T) {
	const core = "core"
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Skipf("cannot tell where core files go: %v", err)
	}
	if got := strings.TrimSpace(string(pattern)); got != core {
		t.Skipf("core files of this machine go to %q, not to the working directory", got)
	}
	// ended is how a process ends that is aborted once it has printed something, and the core
	// files of it.
	ended := func(program string, args ...string) (dumped bool, cores []string) {
		dir := t.TempDir()
		settings := filepath.Join(dir, "eboot.yaml")
		if err := os.WriteFile(settings, []byte("data_dir: "+dir+"/data\nboot: {bind: [127.0.5.1], tcp_ports: 0}\napi: {bind: '', socket: '"+dir+"/s'}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd := exec.Command("sh", append([]string{"-c", `ulimit -c unlimited; exec "$0" "$@"`, program}, args...)...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOTRACEBACK=crash", "EBOOT_TEST_CORE=1")
		cmd.Stdout, cmd.Stderr = log, log
		result, err := testutil.Spawn(cmd, nil)
		if err != nil {
			t.Fatal(err)
		}
		testutil.Poll(t, 30*time.Second, program+" is to run", func() bool {
			content, err := os.ReadFile(log.Name())
			return err == nil && len(content) > 0
		})
		if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
			t.Fatal(err)
		}
		<-result
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != syscall.SIGABRT {
			t.Fatalf("%s %q ended with %v", program, args, cmd.ProcessState)
		}
		cores, err = filepath.Glob(filepath.Join(dir, core+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return status.CoreDump(), cores
	}
	if dumped, cores := ended(os.Args[0], "-test.run=^TestWaitsToBeAborted$", "-test.v"); !dumped || len(cores) != 1 {
		t.Skipf("no program leaves a core file on this machine: %v, %q", dumped, cores)
	}
	eboot := filepath.Join(t.TempDir(), "eboot")
	if out, err := exec.Command("go", "build", "-o", eboot, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if dumped, cores := ended(eboot, "agent", "--config", "eboot.yaml"); dumped || len(cores) > 0 {
		t.Errorf("an aborted server leaves a core file: %v, %q", dumped, cores)
	}
}

// TestWaitsToBeAborted is the other program of TestNoCoreFile.
func TestWaitsToBeAborted(t *testing.T) {
	if os.Getenv("EBOOT_TEST_CORE") == "" {
		t.Skip("TestNoCoreFile runs it")
	}
	<-t.Context().Done()
}
