package loader

import (
	"strings"
	"testing"
)

// What Mix.Release of Elixir 1.14 writes into sys.config, shortened.
const (
	mixPlain    = "[{elixir,[]},{app,[{note,<<\"x\">>}]}].\n"
	mixProvider = "[{elixir,[{config_provider_init,#{config_path => {system,<<82>>,<<46>>},providers => [],reboot_system_after_config => false}}]}].\n"
)

func TestFindProvider(t *testing.T) {
	restarting := strings.Replace(mixProvider, "reboot_system_after_config => false", "reboot_system_after_config =>\n  true", 1)
	for _, c := range []struct {
		name, config string
		want         Provider
	}{
		{"None", mixPlain, Provider{}},
		{"Empty", "", Provider{}},
		{"RuntimeConfig", mixProvider, Provider{Directory: "releases/1"}},
		{"Restarts", restarting, Provider{Directory: "releases/1", Restarts: true}},
	} {
		if got := FindProvider([]byte(c.config), "releases/1"); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// The loader is told of a provider, and of nothing when there is none.
func TestRewriteProvider(t *testing.T) {
	b := script(pathOf("$ROOT/lib"))
	for _, c := range []struct {
		provider Provider
		want     string
	}{
		{Provider{}, "{config,true}]"},
		{Provider{Directory: "releases/1"}, `{config,true},{provider,[<<"releases">>,<<"1">>]}]`},
		{Provider{Directory: "releases/1", Restarts: true}, "{config,true},{provider,restart}]"},
	} {
		r := rewriting(true)
		r.Provider = c.provider
		rewritten, err := Rewrite(b, r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := Text(rewritten)
		if err != nil || !strings.Contains(text, c.want) {
			t.Errorf("%+v: %v, want %s in\n%s", c.provider, err, c.want, text)
		}
	}
}
