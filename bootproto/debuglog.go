package bootproto

import (
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-hclog"
)

// So many lines about single connections and requests are written at level debug: a boot or
// a hundred are seen whole, and who sends a million bad ones does not fill a disk.
const (
	debugRate  = 10 // lines a second in the long run
	debugBurst = 1000
)

// maxRemoteText is how much of a text that a slave may have chosen is logged, in bytes.
const maxRemoteText = 256

// debugLog writes what is of interest only to who looks for it, and not all of it when it is
// too much.
type debugLog struct {
	logger hclog.Logger

	mu      sync.Mutex
	bucket  bucket
	leftOut uint64
}

// log writes a line, unless there were too many. args are made by a function, so that those
// which are not written cost nothing.
func (d *debugLog) log(now time.Time, message string, args func() []any) {
	if !d.logger.IsDebug() {
		return
	}
	d.mu.Lock()
	if !d.bucket.take(now, debugRate, debugBurst) {
		d.leftOut++
		d.mu.Unlock()
		return
	}
	leftOut := d.leftOut
	d.leftOut = 0
	d.mu.Unlock()
	line := args()
	if leftOut > 0 {
		line = append(line, "lines_left_out", leftOut)
	}
	d.logger.Debug(message, line...)
}

// oneLine makes a text that a slave may have chosen fit for a log: short, and quoted when there
// is anything in it that is not printable: a text with line breaks is many lines to
// hclog.
func oneLine(text string) string {
	cut := ""
	if len(text) > maxRemoteText {
		text, cut = strings.ToValidUTF8(text[:maxRemoteText], ""), " …"
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		text = strconv.Quote(text)
	}
	return text + cut
}
