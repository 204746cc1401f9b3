package gossip

import (
	"fmt"
	"io"
	"log"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// How often lines of one kind are logged, and how many kinds are told apart:
// memberlist logs every packet that it refuses, and who can send packets must not be
// able to fill the log.
const (
	linePause    = time.Minute
	maxLineKinds = 64
)

// lineLimit passes memberlist's lines on, one of a kind a minute. Lines are of one
// kind when they begin alike, up to the first digit or quote: what is behind it
// differs with the packet. Debug lines are not limited.
type lineLimit struct {
	next io.Writer

	mu    sync.Mutex
	kinds map[string]*lineKind
}

type lineKind struct {
	at     time.Time
	unsaid int
}

func newLogger(logger hclog.Logger) *log.Logger {
	next := logger.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
	return log.New(&lineLimit{next: next, kinds: map[string]*lineKind{}}, "", 0)
}

func (l *lineLimit) Write(line []byte) (int, error) {
	text := string(line)
	if !strings.HasPrefix(text, "[DEBUG]") {
		var ok bool
		if text, ok = l.limit(text, time.Now()); !ok {
			return len(line), nil
		}
	}
	if _, err := io.WriteString(l.next, text); err != nil {
		return 0, err
	}
	return len(line), nil
}

// limit returns the line to log; false: none.
func (l *lineLimit) limit(line string, now time.Time) (string, bool) {
	kind := line
	if end := strings.IndexAny(kind, "0123456789\"'"); end >= 0 {
		kind = kind[:end]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		for name, other := range l.kinds {
			if len(l.kinds) >= maxLineKinds && now.Sub(other.at) >= linePause {
				delete(l.kinds, name)
			}
		}
		if len(l.kinds) >= maxLineKinds {
			return "", false
		}
		l.kinds[kind] = &lineKind{at: now}
		return line, true
	}
	if now.Sub(k.at) < linePause {
		k.unsaid++
		return "", false
	}
	if k.unsaid > 0 {
		line = fmt.Sprintf("%s (and %d more like this)\n", strings.TrimSuffix(line, "\n"), k.unsaid)
	}
	k.at, k.unsaid = now, 0
	return line, true
}
