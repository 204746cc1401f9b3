package systemd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is systemd's end of NOTIFY_SOCKET: a real datagram socket.
type manager struct{ conn *net.UnixConn }

// newManager sets the environment as systemd does; watchdog 0 is a unit without.
func newManager(t *testing.T, watchdog time.Duration) *manager {
	t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address.Name)
	setWatchdog(t, watchdog)
	return &manager{conn: conn}
}

func setWatchdog(t *testing.T, watchdog time.Duration) {
	t.Helper()
	usec := ""
	if watchdog > 0 {
		usec = strconv.FormatInt(watchdog.Microseconds(), 10)
	}
	t.Setenv("WATCHDOG_USEC", usec)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
}

// next returns the next message, or "" when there is none within the time given.
func (m *manager) next(t *testing.T, within time.Duration) string {
	t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, err := m.conn.Read(buffer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func (m *manager) expect(t *testing.T, want string) {
	t.Helper()
	if got := m.next(t, 5*time.Second); got != want {
		t.Fatalf("systemd heard %q, want %q", got, want)
	}
}

func newNotifier(t *testing.T, logger hclog.Logger) *Notifier {
	t.Helper()
	n, err := New(logger)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMessages(t *testing.T) {
	m := newManager(t, 0)
	n := newNotifier(t, nil)
	n.Ready()
	m.expect(t, "READY=1")
	n.Status("serving 3 bundles\nREADY=1\x00\xff")
	m.expect(t, "STATUS=serving 3 bundles READY=1\x00?")
	n.Status("serving 3 bundles READY=1\x00?")
	n.Status(strings.Repeat("é", 200))
	m.expect(t, "STATUS="+strings.Repeat("é", 126)+"...")
	n.Stopping()
	m.expect(t, "STOPPING=1")
	if err := n.Watch(t.Context(), func(context.Context) error { panic("no watchdog, and asked") }); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	setWatchdog(t, time.Second)
	var log bytes.Buffer
	n := newNotifier(t, hclog.New(&hclog.LoggerOptions{Output: &log}))
	n.Ready()
	n.Status("x")
	n.Stopping()
	if err := n.Watch(t.Context(), func(context.Context) error { panic("nobody to tell, and asked") }); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}

// The watchdog of another process, such as a shell that started this one, is not ours.
func TestWatchdogOfAnother(t *testing.T) {
	newManager(t, time.Second)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getppid()))
	if n := newNotifier(t, nil); n.watchdog != 0 {
		t.Errorf("watchdog %s, want none", n.watchdog)
	}
}

func TestBadEnvironment(t *testing.T) {
	for _, usec := range []string{"x", "0", "-5"} {
		newManager(t, 0)
		t.Setenv("WATCHDOG_USEC", usec)
		if n, err := New(nil); err == nil {
			t.Errorf("WATCHDOG_USEC=%s: %+v, want an error", usec, n)
		}
	}
}

func TestSocketGone(t *testing.T) {
	newManager(t, 0)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	var log bytes.Buffer
	newNotifier(t, hclog.New(&hclog.LoggerOptions{Output: &log})).Ready()
	if !strings.Contains(log.String(), "systemd was not told") {
		t.Errorf("log: %q", &log)
	}
}

// While the check passes there is a sign of life every quarter of the time; while it
// fails there is none, and after it there are some again.
func TestWatch(t *testing.T) {
	const watchdog = 200 * time.Millisecond
	m := newManager(t, watchdog)
	n := newNotifier(t, nil)
	var failing atomic.Bool
	var asked atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	started := time.Now()
	go func() {
		done <- n.Watch(ctx, func(context.Context) error {
			asked.Add(1)
			if failing.Load() {
				return errors.New("stuck")
			}
			return nil
		})
	}()
	for range 5 {
		m.expect(t, "WATCHDOG=1")
	}
	if took := time.Since(started); took < 4*watchdog/4*9/10 {
		t.Errorf("five signs within %s: too many", took)
	}

	failing.Store(true)
	for m.next(t, watchdog) != "" { // one may have been on its way
	}
	before := asked.Load()
	if got := m.next(t, 2*watchdog); got != "" {
		t.Errorf("heard %q while the check failed", got)
	}
	if asked.Load() == before {
		t.Error("the check was not asked any more")
	}
	failing.Store(false)
	m.expect(t, "WATCHDOG=1")

	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// One check that is cut off leaves time for another before systemd acts.
func TestWatchOneSlowCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Notifier{watchdog: 16 * time.Second, logger: hclog.NewNullLogger()}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var asked []time.Duration
		err := n.Watch(ctx, func(ctx context.Context) error {
			switch asked = append(asked, time.Since(began)); len(asked) {
			case 2:
				<-ctx.Done()
				return context.Cause(ctx)
			case 4:
				cancel()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		// The sign at 0 is the last before the one at 12 s; 16 s would be too late.
		if want := []time.Duration{0, 4 * time.Second, 12 * time.Second, 16 * time.Second}; !slices.Equal(asked, want) {
			t.Errorf("asked at %v, want %v", asked, want)
		}
	})
}

// lockedBuffer is a log that two goroutines write to.
type lockedBuffer struct {
	mu      sync.Mutex
	content bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// In the clock of synctest: a check that hangs is cut off by its context, if it
// listens, is logged either way, and gives no sign of life. (Signs go nowhere here:
// a real socket would keep the clock from going on.)
func TestWatchHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedBuffer{}
		n := &Notifier{watchdog: 10 * time.Second, logger: hclog.New(&hclog.LoggerOptions{Output: log})}
		ctx, cancel := context.WithCancel(t.Context())
		var calls int
		release := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			done <- n.Watch(ctx, func(ctx context.Context) error {
				calls++
				if calls == 1 {
					<-ctx.Done()
					return context.Cause(ctx)
				}
				<-release
				return nil
			})
		}()
		<-time.After(6 * time.Second)
		synctest.Wait()
		if text := log.String(); !strings.Contains(text, "this process hangs") || !strings.Contains(text, "no sign of life") || !strings.Contains(text, "no answer within 5s") {
			t.Errorf("log after a check that was cut off: %s", text)
		}
		cancel()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("Watch returned (%v) before its check", err)
		default:
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
