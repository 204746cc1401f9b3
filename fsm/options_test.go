package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"eboot"
)

func TestConfigureChannel(t *testing.T) {
	l := newLog(t)
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "1", "13.1", "one")})
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "2", "13.1", "two")})
	type options = eboot.ChannelOptions
	for i, step := range []struct {
		options    options
		ref        string
		changed    bool
		generation uint64
		want       options
	}{
		{options{Loader: "eboot"}, "", true, 0, options{}}, // the channel is there now
		{options{Loader: "eboot", Control: "off"}, "", false, 0, options{}},
		{options{Control: "on"}, "", true, 0, options{Control: "on"}},
		{options{Loader: "stock"}, "", true, 1, options{Loader: "stock", Control: "on"}},
		{options{Loader: "stock", Control: "on"}, "", false, 1, options{Loader: "stock", Control: "on"}},
		{options{Loader: "stock"}, "otp@1", true, 2, options{Loader: "stock", Control: "on"}},
		{options{Loader: "eboot"}, "otp@2", true, 3, options{Control: "on"}},
		{options{Control: "off"}, "otp@2", true, 3, options{}},
		{options{Control: "off"}, "otp@2", false, 3, options{}},
	} {
		c := ConfigureChannel{Header: l.header(), Channel: "stable", Options: step.options}
		if step.ref != "" {
			c.Ref = refOf(step.ref)
		}
		before := l.machine.State()
		kept := before.ChannelOptions("stable")
		r := l.must(c)
		if s := l.machine.State(); r.Changed != step.changed || r.Generation != step.generation || s.ChannelOptions("stable") != step.want {
			t.Fatalf("step %d: %+v, options %+v", i, r, s.ChannelOptions("stable"))
		}
		if before.ChannelOptions("stable") != kept {
			t.Fatalf("step %d: the older state changed", i)
		}
	}
	if c, _ := l.machine.State().Channel("stable"); len(c.History) != 2 || c.History[1].Generation != 3 {
		t.Fatalf("moves %+v", c.History)
	}
	if r := l.apply(ConfigureChannel{Header: l.header(), Channel: "canary", Options: options{Control: "on"}, Ref: refOf("otp@9")}); !errors.Is(r.Err, eboot.ErrNotFound) {
		t.Fatalf("with a bundle that is not there: %+v", r)
	}
	if _, ok := l.machine.State().Channel("canary"); ok {
		t.Fatal("a refused change made a channel")
	}
	if o := l.machine.State().ChannelOptions("canary"); o != (options{}) {
		t.Fatalf("of a channel that nobody has set: %+v", o)
	}
}

// A bundle that comes with a channel, and a move, leave the options alone.
func TestOptionsSurviveMoves(t *testing.T) {
	l := newLog(t)
	want := eboot.ChannelOptions{Loader: "stock", Control: "on"}
	l.must(ConfigureChannel{Header: l.header(), Channel: "stable", Options: want})
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "1", "13.1", "one"), Channel: "stable"})
	l.must(AddBundle{Header: l.header(), Bundle: bundleOf("otp", "2", "13.1", "two")})
	l.must(SetChannel{Header: l.header(), Channel: "stable", Ref: refOf("otp@2")})
	s := l.machine.State()
	for name, s := range map[string]*State{"the state": s, "its snapshot": reread(t, s), "a restore of it": s.ForRestore(New(nil).State(), 0, Header{})} {
		if got := s.ChannelOptions("stable"); got != want || s.MinimumVersion() != optionsVersion {
			t.Errorf("%s: options %+v, needs version %d", name, got, s.MinimumVersion())
		}
	}
}

// States that were written before channels had options are read, and need no newer version.
func TestOlderSnapshotsHaveNoOptions(t *testing.T) {
	for _, name := range []string{"state.snapshot", "servers.snapshot"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		s, err := ReadState(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(s.Channels()) == 0 || s.ChannelOptions("stable") != (eboot.ChannelOptions{}) || s.MinimumVersion() != firstVersion {
			t.Errorf("%s: %d channels, options %+v, needs version %d", name, len(s.Channels()), s.ChannelOptions("stable"), s.MinimumVersion())
		}
	}
}

func TestChannelsAreBounded(t *testing.T) {
	l := newLog(t)
	configure := ConfigureChannel{Options: eboot.ChannelOptions{Control: "on"}}
	for i := range MaxChannels {
		configure.Header, configure.Channel = l.header(), fmt.Sprint("c", i)
		l.must(configure)
	}
	configure.Header = l.header()
	if r := l.must(configure); r.Changed {
		t.Errorf("the last one again: %+v", r)
	}
	configure.Header, configure.Channel = l.header(), "late"
	if r := l.apply(configure); !errors.Is(r.Err, eboot.ErrTooLarge) {
		t.Errorf("one too many: %+v", r)
	}
}
