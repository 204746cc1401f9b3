package bench

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what all threads of processes have used until now, ended ones included. The
// kernel keeps it in nanoseconds, as a clock of the process (clock_getcpuclockid(3)); /proc/PID/stat
// has it in hundredths of a second.
func cpuTime(tb testing.TB, pids ...int) time.Duration {
	tb.Helper()
	const scheduled = 2 // CPUCLOCK_SCHED of linux/posix-timers.h: user and system time
	var sum time.Duration
	for _, pid := range pids {
		var used unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|scheduled), &used); err != nil {
			tb.Fatalf("CPU time of process %d: %v", pid, err)
		}
		sum += time.Duration(used.Nano())
	}
	return sum
}

// resident is the memory of a process, in bytes.
type resident struct {
	now  int64 // VmRSS
	peak int64 // VmHWM: since the start, or since resetPeak
	anon int64 // RssAnon: without the pages of the binary and of mapped files
}

func readResident(tb testing.TB, pid int) resident {
	tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	r, err := parseResident(string(data))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func readAllResident(tb testing.TB, pids []int) []resident {
	tb.Helper()
	all := make([]resident, len(pids))
	for i, pid := range pids {
		all[i] = readResident(tb, pid)
	}
	return all
}

func parseResident(status string) (resident, error) {
	var r resident
	found := 0
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(line, ":")
		var into *int64
		switch name {
		case "VmRSS":
			into = &r.now
		case "VmHWM":
			into = &r.peak
		case "RssAnon":
			into = &r.anon
		default:
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d kB", into); err != nil {
			return r, fmt.Errorf("/proc/PID/status line %q: %w", line, err)
		}
		*into *= 1024
		found++
	}
	if found != 3 {
		return r, fmt.Errorf("/proc/PID/status: %d of VmRSS, VmHWM and RssAnon", found)
	}
	return r, nil
}

// resetPeak makes the present memory of a process its peak. Where the kernel does not
// offer that, the peak stays the one since the start, which is never lower.
func resetPeak(pid int) { _ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

func TestCPUTimeOfAChild(t *testing.T) {
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo done; read end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	measured := cpuTime(t, cmd.Process.Pid)
	memory := readResident(t, cmd.Process.Pid)
	_ = in.Close()
	_ = cmd.Wait() // read fails at the end of its input
	whole := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if measured == 0 || max(whole-measured, measured-whole) > 100*time.Millisecond {
		t.Errorf("measured %v while it ran, the kernel says %v at its end", measured, whole)
	}
	if memory.now <= 0 || memory.peak < memory.now || memory.anon > memory.now {
		t.Errorf("memory %+v", memory)
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t  100 kB\n")
	if want := (resident{now: 200 << 10, peak: 300 << 10, anon: 100 << 10}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseResident("VmRSS:\t  200 kB\n"); err == nil {
		t.Error("a status without peak was accepted")
	}
}
