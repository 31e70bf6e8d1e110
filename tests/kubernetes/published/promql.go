package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// promql checks every query of the files and prints the metrics they read, one a line. Files are PrometheusRules (YAML) and
// Grafana dashboards (JSON).
func promql(files []string) error {
	metrics := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var queries []string
		if strings.HasSuffix(file, ".json") {
			queries, err = dashboard(text)
		} else {
			queries, err = rules(text)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, query := range queries {
			if err := collect(query, metrics); err != nil {
				return fmt.Errorf("%s: %s: %w", file, query, err)
			}
		}
	}
	names := make([]string, 0, len(metrics))
	for name := range metrics {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Println(name)
	}
	return nil
}

func collect(query string, metrics map[string]bool) error {
	expression, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return err
	}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			metrics[selector.Name] = true
		}
		return nil
	})
	return nil
}

// rules gives the queries of a PrometheusRule, which is checked as Prometheus itself checks a file of rules.
func rules(text []byte) ([]string, error) {
	var rule struct {
		Spec map[string]any `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &rule); err != nil {
		return nil, err
	}
	spec, err := yaml.Marshal(rule.Spec)
	if err != nil {
		return nil, err
	}
	groups, problems := rulefmt.Parse(spec, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.Default())
	if len(problems) > 0 {
		return nil, problems[0]
	}
	var queries []string
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			queries = append(queries, rule.Expr)
		}
	}
	return queries, nil
}

// dashboard gives the queries of a Grafana dashboard, with Grafana's own variables filled in.
func dashboard(text []byte) ([]string, error) {
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
			Panels  []struct{ Targets []struct{ Expr string } }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		return nil, err
	}
	filled := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$__interval", "1m", "$namespace", "a", "$job", "a")
	var queries []string
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, filled.Replace(target.Expr))
		}
	}
	return queries, nil
}
