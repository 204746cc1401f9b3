package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"eboot/bootproto"
)

func answersFrom(addresses ...string) (replies []bootproto.Reply) {
	for _, a := range addresses {
		replies = append(replies, bootproto.Reply{From: netip.AddrPortFrom(netip.MustParseAddr(a), 4368), Port: 40000, ERTS: "13.1.5"})
	}
	return replies
}

func TestRogueIsToldOfOnce(t *testing.T) {
	var table rogueTable
	now := time.Unix(1_700_000_000, 0)
	look := func(whole bool, addresses ...string) (found, gone int) {
		now = now.Add(26 * time.Second)
		f, g := table.enter(now, answersFrom(addresses...), whole)
		return len(f), len(g)
	}
	for i, step := range []struct {
		answers     []string
		whole       bool
		found, gone int
		known       int
	}{
		{nil, true, 0, 0, 0},
		{[]string{"10.0.0.9"}, true, 1, 0, 1},
		{[]string{"10.0.0.9"}, true, 0, 0, 1},
		{nil, true, 0, 0, 1}, // an answer may be lost
		{[]string{"10.0.0.9", "10.0.0.8"}, true, 1, 0, 2},
		{[]string{"10.0.0.8"}, true, 0, 0, 2},
		{[]string{"10.0.0.8"}, true, 0, 0, 2},
		{[]string{"10.0.0.8"}, false, 0, 0, 2}, // not every network could be asked
		{[]string{"10.0.0.8"}, true, 0, 1, 1},
		{[]string{"10.0.0.9"}, true, 1, 0, 2}, // it came back
	} {
		found, gone := look(step.whole, step.answers...)
		if found != step.found || gone != step.gone || len(table.known) != step.known {
			t.Fatalf("look %d: %d found, %d gone, %d known; want %+v", i, found, gone, len(table.known), step)
		}
	}
	if w := table.warnings(); len(w) != 2 || !strings.Contains(w[0], "10.0.0.8 (TCP port 40000, priority 0, ERTS 13.1.5)") || !strings.Contains(w[1], "10.0.0.9") {
		t.Errorf("warnings %q", w)
	}
}

// A stranger that answers from ever new addresses fills neither memory nor log.
func TestRoguesAreBounded(t *testing.T) {
	var table rogueTable
	now := time.Unix(1_700_000_000, 0)
	told := 0
	for round := range 23 { // just below ten minutes
		var addresses []string
		for i := range 256 {
			addresses = append(addresses, fmt.Sprintf("10.%d.%d.1", round, i))
		}
		now = now.Add(26 * time.Second)
		found, _ := table.enter(now, answersFrom(addresses...), true)
		told += len(found)
		if len(table.known) > maxRogues {
			t.Fatalf("%d are remembered", len(table.known))
		}
	}
	if told != maxAlarms {
		t.Errorf("%d alarms in ten minutes, want %d", told, maxAlarms)
	}
	w := table.warnings()
	if want := fmt.Sprintf("%d more answer slaves", maxRogues-maxWarnings+table.dropped); len(w) != maxWarnings+1 || !strings.HasPrefix(w[maxWarnings], want) {
		t.Errorf("warnings %q, want the last one to be of %q", w, want)
	}
	// When it is quiet again there is room, and an alarm for the next one.
	now = now.Add(alarmPeriod)
	for range missedLooks {
		table.enter(now, nil, true)
	}
	if found, _ := table.enter(now, answersFrom("10.99.0.1"), true); len(found) != 1 || len(table.warnings()) != 1 {
		t.Errorf("%d alarms for one stranger after others, warnings %q", len(found), table.warnings())
	}
}
