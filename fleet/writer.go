package fleet

import (
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot/internal/fsutil"
)

const (
	writeAfter    = time.Second      // from the first change to the write
	retryAfter    = 10 * time.Second // after a write that failed
	writeBusyness = 20               // writing may take one such part of the time
)

// tableWriter brings the changes of a table to its file. Used by Run alone.
type tableWriter struct {
	table interface {
		changedSince(version uint64) bool
		encode(w io.Writer) (version uint64, err error)
	}
	path   string // empty: there is no file
	logger hclog.Logger
	noun   string // what the table holds
	loss   string // what happens while that is not on disk

	written uint64 // version of the table that the file has
	timer   <-chan time.Time
	pause   time.Duration // between the writes, when longer than writeAfter
	failing bool
}

// due returns a channel that fires when a write is due: nil, which never does, when
// nothing changed. A table that takes long to write is written less often.
func (w *tableWriter) due() <-chan time.Time {
	if w.timer == nil && w.path != "" && w.table.changedSince(w.written) {
		w.timer = time.After(max(writeAfter, w.pause))
	}
	return w.timer
}

func (w *tableWriter) write() {
	w.timer = nil
	start := time.Now()
	err := w.save()
	if w.pause = writeBusyness * time.Since(start); err != nil {
		w.pause = max(w.pause, retryAfter)
	}
	if err != nil && !w.failing {
		w.logger.Error(w.noun+" are not on disk: "+w.loss, "file", w.path, "error", err)
	}
	if err == nil && w.failing {
		w.logger.Info(w.noun+" are on disk again", "file", w.path)
	}
	w.failing = err != nil
}

func (w *tableWriter) save() error {
	var version uint64
	err := fsutil.WriteAtomic(w.path, 0o600, func(out io.Writer) (err error) {
		version, err = w.table.encode(out)
		return err
	})
	if err == nil {
		w.written = version
	}
	return err
}

// finish writes what is not in the file yet.
func (w *tableWriter) finish() error {
	if w.path == "" || !w.table.changedSince(w.written) {
		return nil
	}
	if err := w.save(); err != nil {
		return fmt.Errorf("write %s: %w", w.noun, err)
	}
	return nil
}
