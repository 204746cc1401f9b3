package systemd

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
)

// maxStatus bounds the text of Status in bytes; systemctl shows one line of it.
const maxStatus = 256

// Notifier tells systemd how this process is doing. A message that cannot be
// sent is logged and lost: there is nothing that the process should do otherwise.
type Notifier struct {
	present  bool          // there is somebody to tell
	watchdog time.Duration // systemd acts after so long without a sign of life; 0: never
	logger   hclog.Logger

	mu     sync.Mutex
	status string // the last one sent
}

// New reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment of
// the process. An error means that the watchdog's variables are not what systemd
// writes. A nil logger discards.
func New(logger hclog.Logger) (*Notifier, error) {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	n := &Notifier{present: os.Getenv("NOTIFY_SOCKET") != "", logger: logger}
	if !n.present {
		return n, nil
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, fmt.Errorf("read the watchdog's environment: %w", err)
	}
	n.watchdog = watchdog
	return n, nil
}

// Ready says that the process has started and does its work. It ends the start
// of a unit of Type=notify, and begins the time of the watchdog.
func (n *Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Stopping says that the process is about to end. It ends the time of the watchdog.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status shows text, one line, in `systemctl status`. The same text twice is sent
// once, so that it may be called at every change of anything.
func (n *Notifier) Status(text string) {
	text = oneLine(text)
	n.mu.Lock()
	defer n.mu.Unlock()
	if text == n.status {
		return
	}
	n.status = text
	n.send("STATUS=" + text)
}

func (n *Notifier) send(message string) {
	if !n.present {
		return
	}
	if _, err := daemon.SdNotify(false, message); err != nil {
		n.logger.Warn("systemd was not told", "message", message, "error", err)
	}
}

// oneLine keeps text from being read as several assignments, which lines are.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > maxStatus {
		text = strings.ToValidUTF8(text[:maxStatus-3], "") + "..."
	}
	return text
}
