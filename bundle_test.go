package eboot

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestChannelOptionsCheck(t *testing.T) {
	for _, good := range []ChannelOptions{{}, {Loader: "eboot"}, {Loader: "stock", Control: "on"}, {Control: "off"}} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for text, bad := range map[string]ChannelOptions{
		`loader "Stock": want eboot or stock`: {Loader: "Stock"},
		`control "yes": want off or on`:       {Loader: "stock", Control: "yes"},
		`loader "` + strings.Repeat("x", 40):  {Loader: strings.Repeat("x", 1000)},
	} {
		if err := bad.Check(); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), text) || len(err.Error()) > 200 {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestChannelOptionsWith(t *testing.T) {
	type o = ChannelOptions
	for _, tc := range []struct{ now, changes, want, words o }{
		{o{}, o{}, o{}, o{"eboot", "off", "off"}},
		{o{}, o{"eboot", "off", "off"}, o{}, o{"eboot", "off", "off"}},
		{o{}, o{"stock", "", ""}, o{"stock", "", ""}, o{"stock", "off", "off"}},
		{o{"stock", "", ""}, o{"", "on", ""}, o{"stock", "on", ""}, o{"stock", "on", "off"}},
		{o{"stock", "on", ""}, o{"eboot", "", "on"}, o{"", "on", "on"}, o{"eboot", "on", "on"}},
		{o{"stock", "on", "on"}, o{}, o{"stock", "on", "on"}, o{"stock", "on", "on"}},
	} {
		if got := tc.now.With(tc.changes); got != tc.want || got.Words() != tc.words {
			t.Errorf("%+v with %+v: %+v, in words %+v", tc.now, tc.changes, got, got.Words())
		}
	}
}

// What has no options is written as it was before there were any.
func TestChannelWithoutOptions(t *testing.T) {
	text, err := json.Marshal(Channel{Name: "stable", Bundles: map[string]Ref{}})
	if want := `{"name":"stable","bundles":{}}`; err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}
